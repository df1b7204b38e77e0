#!/bin/sh
# cuda.sh [FULL] - builds cuda.cpp for an imitated GPU (tests/cuda) and runs it. FULL:
# with threads in descending and random order, and under the address, undefined-behaviour and thread
# sanitizers.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
here=$(mktemp -d "${TMPDIR:-/tmp}/hmoe-cuda-XXXXXX") || exit 1
trap 'rm -rf "$here"' EXIT
trap 'exit 1' HUP INT TERM
cd "$root" || exit 1
passed=0 failed=0

# run NAME EFFORT FLAGS...: builds with these flags where they work, and adds up what the test says
run() {
    name=$1 effort=$2; shift 2
    if ! echo 'int main() { return 0; }' | "$cxx" "$@" -x c++ - -o "$here/probe" 2>/dev/null \
        || ! "$here/probe" 2>/dev/null; then
        echo "cuda $name: skipped, $cxx cannot $*"; return
    fi
    ended=1
    if "$cxx" -std=c++17 -Wall -Wextra -Wshadow -Werror -Wno-unknown-pragmas "$@" \
        -Itests/cuda -I. tests/cuda/cuda.cpp -o "$here/test"; then
        "$here/test" "$effort" >"$here/said" 2>&1 && ended=0
    fi
    cat "$here/said" 2>/dev/null
    good=$(sed -n '$s/^.*: \([0-9]*\) passed, [0-9]* failed$/\1/p' "$here/said" 2>/dev/null)
    bad=$(sed -n '$s/^.*: [0-9]* passed, \([0-9]*\) failed$/\1/p' "$here/said" 2>/dev/null)
    [ $ended -eq 0 ] || [ "${bad:-0}" -gt 0 ] || bad=1
    passed=$((passed + ${good:-0})) failed=$((failed + ${bad:-0}))
    echo "cuda $name: ${good:-0} passed, ${bad:-0} failed"
    rm -f "$here/test" "$here/said"
}

for cxx in ${CXX:-} g++ c++ clang++ ""; do command -v "$cxx" >/dev/null && break; done
if [ -z "$cxx" ]; then echo "no C++ compiler here: the imitated GPU is skipped"
elif [ "${1:-}" != FULL ] && [ -z "${FULL:-}" ]; then run short short -O2
else
    COC_ORDER=1 run descending short -O2
    COC_ORDER=2 COC_SEED=7 COC_RESIDENT=3 run random short -O2
    run "address and undefined" least -O1 -g -fsanitize=address,undefined -fno-sanitize-recover
    run thread least -O1 -g -fsanitize=thread
fi
echo "cuda: $passed passed, $failed failed"
[ $failed -eq 0 ]
