#!/bin/sh
# build.sh DIR TEXT - makes DIR.html of page.html: where a line of that says @NAME@, the
# file DIR/@NAME@ comes in: the worker, two WebAssembly modules (with vectors and without) and the
# start of a text, all but the first in base64.
dir=$1 text=$2 clang=${CLANG:-clang} here=$(dirname "$0") root=$(dirname "$0")/../..
mkdir -p "$dir" && rm -f "$dir.html" || exit 1

# module NAME FLAG...
module() {
    name=$1; shift
    "$clang" --target=wasm32-wasi -mexec-model=reactor -std=c99 -O3 -Wall -Wextra -Wpedantic \
        -Wshadow -Werror -ffp-contract=fast -fno-math-errno -I"$root" "$@" "$here/playground.c" \
        -Wl,--strip-all,--stack-first,-z,stack-size=1048576,--max-memory=4294967296 \
        -o "$dir/playground.wasm" && base64 "$dir/playground.wasm" >"$dir/@$name@"
}
echo '#include <stdio.h>
int main(void) { return puts(""); }' >"$dir/probe.c"
if ! "$clang" --target=wasm32-wasi "$dir/probe.c" -o "$dir/probe.wasm" >"$dir/probe.log" 2>&1; then
    echo "make playground: $clang builds no WebAssembly here (see $dir/probe.log). On Debian and" \
        "Ubuntu: apt-get install clang lld wasi-libc libclang-rt-dev-wasm32" >&2
    exit 1
fi
module SIMD -msimd128 -fopenmp-simd -DHMOE_SIMD && module SCALAR || exit 1
cp "$here/worker.js" "$dir/@WORKER@" && head -c 200000 "$text" >"$dir/text" &&
    base64 "$dir/text" >"$dir/@TEXT@" || exit 1
awk -v dir="$dir/" '/^@[A-Z]+@$/ { while ((getline line < (dir $0)) > 0) print line; next } 1' \
    "$here/page.html" >"$dir/new" && mv "$dir/new" "$dir.html" &&
    echo "$dir.html: $(wc -c <"$dir.html") bytes, opens in any browser"
