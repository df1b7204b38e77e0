#!/bin/sh
# run_tests.sh WORD... - runs tests, each an executable or a script whose last line says
# "NAME: N passed, N failed", shows what they print, and adds up. A test that ends in any other way
# counts as one that failed. A word such as BIN=build/ sets that variable for the tests after it.
export OMP_WAIT_POLICY=passive   # threads that wait spinning take minutes on a busy machine
passed=0 failed=0
log=$(mktemp "${TMPDIR:-/tmp}/hmoe-tests-XXXXXX") || exit 1
trap 'rm -f "$log"' EXIT
for test in "$@"; do
    case $test in
        *=*) export "${test?}"; continue ;;
        *.sh) sh "$test" >"$log" 2>&1 ;;
        *.py) if command -v "${PYTHON:-python3}" >/dev/null; then "${PYTHON:-python3}" "$test"
              else echo "no python3 here: skipped"; echo "$test: 0 passed, 0 failed"; fi \
              >"$log" 2>&1 ;;
        *) "$test" >"$log" 2>&1 ;;
    esac
    status=$?
    cat "$log"
    good=$(sed -n '$s/^.*: \([0-9]*\) passed, [0-9]* failed$/\1/p' "$log")
    bad=$(sed -n '$s/^.*: [0-9]* passed, \([0-9]*\) failed$/\1/p' "$log")
    if [ -z "$bad" ] || { [ $status -ne 0 ] && [ "$bad" -eq 0 ]; }; then
        echo "FAILED $test: ended with status $status, without a failed test to show for it"
        bad=$((${bad:-0} + 1))
    fi
    passed=$((passed + ${good:-0})) failed=$((failed + bad))
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
