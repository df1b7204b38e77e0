# harness.sh - what test.h is for C: the tests in sh begin with
#
#     . "$(dirname "$0")/../harness.sh"
#
# then make checks, and end with `summary`. A file that is sourced defines `root`, the project;
# `here`, a directory that is removed at the end; and BIN and BUILD as absolute paths.
# shellcheck shell=sh
# shellcheck disable=SC2034  # `root` is for those that source this file
set -u
LC_ALL=C; export LC_ALL
harness_name=$(basename "$0" .sh)
root=$(cd "$(dirname "$0")" && until [ -f hmoe.h ] || [ "$PWD" = / ]; do cd ..; done && pwd)
here=$(mktemp -d "${TMPDIR:-/tmp}/hmoe-$harness_name-XXXXXX") || exit 1
case ${BIN:=} in /*) ;; *) BIN=$PWD/$BIN ;; esac
case ${BUILD:=build} in /*) ;; *) BUILD=$PWD/$BUILD ;; esac
passed=0 failed=0
running=        # a process that must not outlive the test
evidence=       # files of `here` that show why a check failed, besides what its command prints
clean() { :; }  # what else there is to remove: a test that needs it defines it again

harness_end() {
    [ -z "$running" ] || kill -9 "$running"
    clean
    rm -rf "$here"
} 2>/dev/null
trap harness_end EXIT
trap 'exit 1' HUP INT TERM

# --- checks ---------------------------------------------------------------------------------------

pass() { passed=$((passed + 1)); }
fail() {          # fail NAME FILE...: shows the ends of these files
    failed=$((failed + 1)); echo "FAILED $1"; shift
    for harness_file in "$@"; do
        [ ! -s "$harness_file" ] || tail -n 20 "$harness_file" | sed 's/^/    /'
    done
}
check() {         # check NAME COMMAND...: the command succeeds; what it prints is seen if it fails
    harness_what="$1: "; shift
    harness_what=$harness_what$*
    if "$@" >"$here/check.log" 2>&1; then pass; return; fi
    set -- check.log $evidence
    for harness_file in "$@"; do set -- "$@" "$here/$harness_file"; shift; done
    fail "$harness_what" "$@"
}
not() { ! "$@"; }

# gives STATUS PATTERN COMMAND...: the command ends so. 0: it prints the pattern, and nothing on
# standard error. Else: it says there "program: ...PATTERN...", in one line, and may add a second in
# brackets. `stdout` and `stderr` in `here` keep what it printed.
gives() {
    harness_status=$1 harness_pattern=$2; shift 2
    harness_got=0
    "$@" >"$here/stdout" 2>"$here/stderr" || harness_got=$?
    if [ $harness_got -ne "$harness_status" ]; then
        echo "status $harness_got, should be $harness_status"
    elif [ $harness_got -eq 0 ]; then
        if [ ! -s "$here/stderr" ] && grep -q -e "$harness_pattern" "$here/stdout"; then return; fi
        echo "should print $harness_pattern, and nothing on standard error"
    elif awk 'NR == 1 ? !/^[a-z_]*: / : NR > 2 || !/^\(/ { bad = 1 } END { exit bad || !NR }' \
            "$here/stderr" && head -n 1 "$here/stderr" | grep -q -e ": .*$harness_pattern"; then
        return
    else echo "should be one line with $harness_pattern"; fi
    tail -n 9 "$here/stdout" "$here/stderr"
    return 1
}

# add NAME COMMAND...: a test that counts for itself, in its last line, "...N passed, N failed". One
# that ends in any other way is one that failed.
add() {
    harness_what=$1; shift
    harness_got=0
    "$@" >"$here/add.log" 2>&1 || harness_got=$?
    cat "$here/add.log"
    harness_line=$(tr -d '\r' <"$here/add.log" |
        sed -n '$s/^\(.*: \)*\([0-9]*\) passed, \([0-9]*\) failed$/good=\2 bad=\3/p')
    good=0 bad=
    eval "$harness_line"
    if [ -z "$bad" ] || { [ $harness_got -ne 0 ] && [ "$bad" -eq 0 ]; }; then
        echo "FAILED $harness_what: status $harness_got, without a failed test to show for it"
        bad=$((${bad:-0} + 1))
    fi
    passed=$((passed + good)) failed=$((failed + bad))
}

summary() {       # ends the test; before any check: it was skipped
    echo "$harness_name: $passed passed, $failed failed"
    [ $failed -eq 0 ]
    exit
}

# --- what several tests need ----------------------------------------------------------------------

have() { command -v "$1" >/dev/null 2>&1; }
near() {          # near A B [WITHIN]
    awk "BEGIN { d = ($1) - ($2); exit !(d <= ${3:-1e-5} && d >= -${3:-1e-5}) }" && return
    echo "$1 is not $2"; return 1
}
say_text() {      # a text of a few words, 3000 bytes, the same each time
    awk 'BEGIN { s = 1; split("to be or not that is the question whether it nobler in mind", w, " ")
        while (n < 3000) { s = (s * 1103 + 12345) % 65536; x = w[1 + s % 13] (s % 7 ? " " : "\n")
            printf "%s", x; n += length(x) } }' | head -c 3000
}
