#!/bin/sh
# run_tests.sh WORD... - runs tests, each an executable or a script whose last line says
# "NAME: N passed, N failed", shows what they print, and adds up. A test that ends in any other way
# counts as one that failed. A word such as BIN=build/ sets that variable for the tests after it.
# pytest, a package of PYTHON, runs those in Python. JOBS tests run at a time, one if it is not set.
# shellcheck source=tests/harness.sh
. "$(dirname "$0")/harness.sh"
export OMP_WAIT_POLICY=passive   # threads that wait spinning take minutes on a busy machine

python_test() {   # adds such a line to what pytest prints; an error is a failure
    if ! "${PYTHON:=python3}" -c 'import pytest' 2>/dev/null; then
        echo "$PYTHON has no pytest: skipped"; echo "$1: 0 passed, 0 failed"; return
    fi
    status=0
    "$PYTHON" -m pytest -q "$1" || status=$?
    tail -n 1 "$here/$number/log" | awk -F '[ ,]+' -v name="$(basename "$1" .py)" -v end=$status '
        / in [0-9.]+s/ { for (i = 2; i <= NF; i++) n[$i] = $(i - 1)
            if (n["skipped"] && end == 5) end = 0          # 5: there was no test to run
            print name ": " n["passed"] + 0 " passed, " \
                n["failed"] + n["error"] + n["errors"] " failed" }
        END { exit end }'
}
run() {
    case $1 in
        *.sh) exec sh "$1" ;;
        *.py) python_test "$1" ;;
        *) exec "$1" ;;
    esac
}

# Several workers go through the words. Each test belongs to the worker that first makes its
# directory. The worker writes `log` there, and then `status`.
worker() {
    number=0
    for word in "$@"; do
        case $word in *=*) export "${word?}"; continue ;; esac
        number=$((number + 1))
        mkdir "$here/$number" 2>/dev/null || continue
        status=0 began=$(date +%s)
        run "$word" >"$here/$number/log" 2>&1 &
        trap 'kill $!; exit 1' TERM
        wait $! || status=$?
        echo "$(($(date +%s) - began)) s  $word" >"$here/$number/seconds"
        echo $status >"$here/$number/status"
    done
}
result() {        # waits for test `number`, prints its log, and returns its status
    until [ -s "$here/$number/status" ]; do sleep 0.2 2>/dev/null || sleep 1; done
    cat "$here/$number/log"
    return "$(cat "$here/$number/status")"
}

workers='' jobs=${JOBS:-1}
while [ "$jobs" -gt 0 ]; do
    worker "$@" & workers="$workers $!"
    jobs=$((jobs - 1))
done
# shellcheck disable=SC2086  # several numbers
clean() { kill $workers; }       # if this script is stopped
number=0
for test in "$@"; do
    case $test in *=*) continue ;; esac
    number=$((number + 1))
    add "$test" result
done
wait
[ $number -lt 9 ] || { echo "the slowest:"; cat "$here"/*/seconds | sort -rn | head -n 12; }
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
