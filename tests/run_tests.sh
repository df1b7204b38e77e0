#!/bin/sh
# run_tests.sh WORD... - runs tests, each an executable or a script whose last line says
# "NAME: N passed, N failed", shows what they print, and adds up. A test that ends in any other way
# counts as one that failed. A word such as BIN=build/ sets that variable for the tests after it.
# pytest, a package of PYTHON, runs those in Python.
# shellcheck source=tests/harness.sh
. "$(dirname "$0")/harness.sh"
export OMP_WAIT_POLICY=passive   # threads that wait spinning take minutes on a busy machine

python_test() {   # adds such a line to what pytest prints; an error is a failure
    if ! "${PYTHON:=python3}" -c 'import pytest' 2>/dev/null; then
        echo "$PYTHON has no pytest: skipped"; echo "$1: 0 passed, 0 failed"; return
    fi
    status=0
    "$PYTHON" -m pytest -q "$1" >"$here/pytest.log" 2>&1 || status=$?
    cat "$here/pytest.log"
    tail -n 1 "$here/pytest.log" | awk -F '[ ,]+' -v name="$(basename "$1" .py)" -v end=$status '
        / in [0-9.]+s/ { for (i = 2; i <= NF; i++) n[$i] = $(i - 1)
            if (n["skipped"] && end == 5) end = 0          # 5: there was no test to run
            print name ": " n["passed"] + 0 " passed, " \
                n["failed"] + n["error"] + n["errors"] " failed" }
        END { exit end }'
}
for test in "$@"; do
    case $test in
        *=*) export "${test?}" ;;
        *.sh) add "$test" sh "$test" ;;
        *.py) add "$test" python_test "$test" ;;
        *) add "$test" "$test" ;;
    esac
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
