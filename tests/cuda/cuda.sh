#!/bin/sh
# cuda.sh [FULL] - builds cuda.cpp for an imitated GPU (tests/cuda) and runs it. FULL:
# with threads in descending and random order, and under the address, undefined-behaviour and thread
# sanitizers.
# shellcheck source=tests/harness.sh
. "$(dirname "$0")/../harness.sh"
cd "$root" || exit 1

# run NAME EFFORT FLAGS...: builds with these flags where they work, and adds up what the test says
run() {
    name="cuda $1" effort=$2; shift 2
    if ! echo 'int main() { return 0; }' | "$cxx" "$@" -x c++ - -o "$here/probe" 2>/dev/null \
        || ! "$here/probe" 2>/dev/null; then
        echo "$name: skipped, $cxx cannot $*"; return
    fi
    rm -f "$here/test"
    "$cxx" -std=c++17 -Wall -Wextra -Wshadow -Werror -Wno-unknown-pragmas "$@" \
        -Itests/cuda -I. tests/cuda/cuda.cpp -o "$here/test"
    add "$name" "$here/test" "$effort"
}

for cxx in ${CXX:-} g++ c++ clang++ ""; do have "$cxx" && break; done
if [ -z "$cxx" ]; then echo "no C++ compiler here: the imitated GPU is skipped"
elif [ "${1:-}" != FULL ] && [ -z "${FULL:-}" ]; then run short short -O2
else
    COC_ORDER=1 run descending least -O2
    COC_ORDER=2 COC_SEED=7 COC_RESIDENT=3 run random short -O2
    run "address and undefined" least -O1 -g -fsanitize=address,undefined -fno-sanitize-recover
    run thread least -O1 -g -fsanitize=thread
fi
summary
