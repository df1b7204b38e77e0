#!/bin/sh
# run_tests.sh WORD... - runs tests, each an executable or a script whose last line says
# "NAME: N passed, N failed", shows what they print, and adds up. A test that ends in any other way
# counts as one that failed. A word such as BIN=build/ sets that variable for the tests after it.
# shellcheck source=tests/harness.sh
. "$(dirname "$0")/harness.sh"
export OMP_WAIT_POLICY=passive   # threads that wait spinning take minutes on a busy machine
for test in "$@"; do
    case $test in
        *=*) export "${test?}" ;;
        *.sh) add "$test" sh "$test" ;;
        *.py) if have "${PYTHON:-python3}"; then add "$test" "${PYTHON:-python3}" "$test"
              else echo "no python3 here: skipped"; echo "$test: 0 passed, 0 failed"; fi ;;
        *) add "$test" "$test" ;;
    esac
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
