#!/bin/sh
# cuda_programs.sh - train_tiny and generate with the backend for GPUs in them.
#   First on a GPU that tests/cuda imitates, which needs a C++ compiler: as good as the CPU, and
#   runs move from one to the other.
#   Then by `make cuda`, which needs nvcc, in directories of its own: what it says where it cannot
#   work, that its programs start on a machine without a GPU and say so, that their CPU computes the
#   same bits, and that each make builds what it should.
# shellcheck source=tests/harness.sh
. "$(dirname "$0")/../harness.sh"
cd "$root" || exit 1
unset MAKEFLAGS MAKELEVEL MAKEOVERRIDES
evidence=said

run() { "$@" >"$here/said" 2>&1; status=$?; }
says() { [ $status -eq "$1" ] && [ "$(grep -a -c -e "$2" "$here/said")" -eq 1 ]; }
# One generation of GPUs: the others take a minute more, and tests/cuda/test_static.py compiles them.
build() { run make CC="${CC:-cc}" BUILD="$here/build" BIN="$here/" SM=80 "$@"; }
train() {         # train DIR OPTIONS...
    dir=$here/$1; shift
    run "$here/train_tiny" --data "$here/text" --out "$dir" --width 16 --heads 2 --layers 2 \
        --context 8 --experts 4 --hidden 9 --batch 2 --eval-tokens 64 --threads 1 --warmup 3 "$@"
}
score() { dir=$here/$1; shift; run "$here/generate" "$dir" --score "$here/text" --threads 1 "$@"; }
loss() { sed -n 's/^final: val_loss \([0-9.]*\) .*/\1/p; s/^nll \([0-9.]*\) .*/\1/p' "$here/said"; }
head -c 3000 README.md >"$here/text"

# --- an imitated GPU ------------------------------------------------------------------------------
imitate() {       # imitate COMPILER: builds both programs
    "$1" -std=c++17 -O2 -Itests/cuda -I. -x c++ -c hmoe_cuda.cu -o "$here/hmoe_cuda.o" || return
    for program in train_tiny generate; do
        ${CC:-cc} -std=c99 -O2 -I. -DHMOE_CUDA -c "$program.c" -o "$here/$program.o" || return
        "$1" "$here/$program.o" "$here/hmoe_cuda.o" -o "$here/$program" -lm || return
    done
}
for cxx in c++ g++ clang++ ""; do have "$cxx" && break; done
if [ -z "$cxx" ]; then echo "no C++ compiler here: an imitated GPU is skipped"; else
    run imitate "$cxx"
    check "the programs on an imitated GPU" [ $status -eq 0 ]
    for options in "--noisy --dropout 0.1 --accum 2" "--routing topp --batch 3"; do
        train cpu --overwrite --steps 4 --eval-every 2 $options
        on_cpu=$(loss)
        train gpu --overwrite --steps 4 --eval-every 2 $options --backend cuda
        check "the GPU trains, $options" says 0 "^final: "
        check "and comes to what the CPU does" near "$(loss)" "$on_cpu" 1e-5
        check "it says who computes" grep -q -a -x "backend  cuda" "$here/said"
        check "and shows samples" grep -q -a "^  | " "$here/said"
    done
    train cpu --resume --steps 6 --backend cuda
    from_cpu=$(loss)
    train gpu --resume --steps 6
    check "each goes on with the other's run" near "$(loss)" "$from_cpu" 1e-5
    train gpu --resume --steps 7 --backend cuda --precision bf16
    check "and so does bf16" grep -q -a -x "backend  cuda bf16" "$here/said"
    score gpu
    on_cpu=$(loss)
    score gpu --backend cuda
    check "the GPU scores" near "$(loss)" "$on_cpu" 1e-5
    score gpu --backend cuda --precision bf16
    check "and in bf16" near "$(loss)" "$on_cpu" 0.01
    train muon --steps 1 --optimizer muon
    cksum "$here/muon"/* >"$here/before"
    train muon --resume --steps 2 --backend cuda
    check "Muon's runs stay on the CPU" says 1 "^train_tiny: Muon runs on the CPU"
    cksum "$here/muon"/* >"$here/after"
    check "and are not harmed" cmp "$here/before" "$here/after"
    rm -rf "$here"/*.o "$here/train_tiny" "$here/generate" "$here/cpu" "$here/gpu"
fi

# --- make cuda ------------------------------------------------------------------------------------
build cuda NVCC="$here/nowhere/nvcc"
check "no nvcc" says 2 "^make cuda: .*nowhere/nvcc: install the CUDA toolkit"
build cuda CFLAGS=-DHMOE_REAL=double
check "no double" says 2 "^make cuda: .*HMOE_REAL=double"
check "nothing was built" [ ! -e "$here/build" ]

if nvcc=$(PATH=$PATH:/usr/local/cuda/bin command -v nvcc); then
    build "$here/train_tiny"
    train plain --steps 3
    check "the plain build trains" says 0 "^final: "
    train refused --backend cuda
    check "the plain build has no cuda" says 2 "without it, build it with make cuda"
    build cuda
    check "make cuda" says 0 "hmoe_cuda.cu$"
    for program in train_tiny generate; do
        run ldd "$here/$program"
        check "$program needs no library of CUDA" [ "$(grep -c -e cuda "$here/said")" -eq 0 ]
    done
    train same --steps 3
    check "its CPU trains" says 0 "^final: "
    check "to the same bits" cmp "$here/plain/model.safetensors" "$here/same/model.safetensors"
    train gpu --steps 3 --backend cuda
    if [ -e /dev/nvidiactl ]; then
        check "the GPU trains" near "$(loss)" "$(train plain --resume --steps 3; loss)" 1e-4
    else
        check "no GPU" says 1 "^train_tiny: .*no GPU"
        check "said in one line" [ "$(wc -l <"$here/said")" -eq 1 ]
        check "and no directory made" [ ! -e "$here/gpu" ]
        score same/best --backend cuda --precision bf16
        check "generate: no GPU" says 1 "^generate: .*no GPU"
    fi
    score same/best
    check "generate: its CPU scores" says 0 "^nll "
    build "$here/train_tiny"
    train refused --backend cuda
    check "make takes it out again" says 2 "without it, build it with make cuda"
    build cuda
    check "and make cuda puts it in" says 0 "train_tiny.c .*-DHMOE_CUDA"
    check "compiling no kernel twice" [ "$(grep -c -e "^$nvcc" "$here/said")" -eq 0 ]
else
    echo "no nvcc here: building with it is skipped"
fi

summary
