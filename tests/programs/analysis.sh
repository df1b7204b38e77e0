#!/bin/sh
# analysis.sh - what tools that look for mistakes say: shellcheck, clang-tidy and cppcheck of
# the sources; valgrind, the memory and the thread sanitizer of runs; and every allocation of both
# programs failing in turn. Each tool is first shown a mistake: one that sees nothing proves
# nothing. What is not here is skipped. BUILD is where it builds.
# shellcheck source=tests/harness.sh
. "$(dirname "$0")/../harness.sh"
cd "$root" || exit 1
unset MAKEFLAGS

look_for() { have "$1" || { echo "no $1 here: skipped"; return 1; }; }
build() {         # build NAME COMPILER OPENMP FLAGS TARGET...: into $BUILD/NAME
    into=$BUILD/$1 by=$2 openmp=$3 flags=$4; shift 4
    for target in "$@"; do set -- "$@" "$into/$target"; shift; done
    check "build in $into" make -s -j2 CC="$by" OPENMP="$openmp" CFLAGS="$flags" LDFLAGS= DEBUG=0 \
        BUILD="$into" BIN="$into/" BACKEND=cpu "$@"
}

# --- the sources ----------------------------------------------------------------------------------
if look_for shellcheck; then
    printf 'cd $1\n' >"$here/bad.sh"
    check "shellcheck sees" not shellcheck -s sh "$here/bad.sh"
    for script in .ci/run tests/*.sh tests/*/*.sh extra/*.sh extra/*/*.sh tinyshakespeare/*.sh; do
        check "shellcheck $script" shellcheck -x -S warning "$script"
    done
fi

sources="train_tiny.c generate.c tests/*/*.c extra/muon/*.c extra/parallel/*.c"
cat >"$here/bad.c" <<'END'
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
    char *p = malloc(10);
    if (argc > 1) free(p);
    return *p + printf("%s", argv[argc]);
}
END
if look_for clang-tidy; then
    cp .clang-tidy "$here"
    check "clang-tidy sees" not clang-tidy --quiet "$here/bad.c" -- -std=c99
    # The analyzer follows the programs, which contain all headers, in every build; in the tests it
    # loses its way. Two jobs at a time.
    for source in $sources; do
        case $source in
            extra/parallel/mpi.c) ;;
            */*) echo "--checks=-clang-analyzer-* $source -- -I. -std=c99 -DHMOE_REAL=double" ;;
            *) echo "$source -- -I. -std=c99"; echo "$source -- -I. -std=c99 -fopenmp" ;;
        esac
    done >"$here/jobs"
    echo "train_tiny.c -- -I. -std=c99 -DHMOE_REAL=double" >>"$here/jobs"
    # What another process sent it cannot know. -isystem: no opinion of MPI's own headers
    mpi=$(mpicc.openmpi --showme:compile 2>/dev/null | sed 's/-I/-isystem /g')
    [ -z "$mpi" ] || for source in "train_tiny.c -- -DHMOE_MPI" "extra/parallel/mpi.c --"; do
        echo "--checks=-clang-analyzer-* $source -I. -std=c99 $mpi" >>"$here/jobs"
    done
    check "clang-tidy" xargs -P 2 -L 1 clang-tidy --quiet <"$here/jobs"
fi
if look_for cppcheck; then
    # A softmax's sum is never 0; `last < 0 ||` is a check; one piece of memory may be for doubles
    # first and floats behind them; generate's page is a file that is yet to be made; and to cppcheck
    # an array that a loop fills may not be: the memory sanitizer knows better.
    cppcheck_all="cppcheck --quiet --std=c99 -I. --enable=warning,performance,portability
        --suppress=invalidFunctionArg --suppress=arrayIndexThenCheck --suppress=uninitvar
        --suppress=invalidPointerCast --suppress=preprocessorErrorDirective
        --suppress=missingIncludeSystem -j 2 --error-exitcode=1"
    check "cppcheck sees" not $cppcheck_all "$here/bad.c"
    check "cppcheck" $cppcheck_all $sources
fi

# Every function that a header declares must be starved, in tests/files/errors.c; but for hmoe_cuda,
# which is in hmoe_cuda.cu.
sed -n '/^\/\* ---- Out of memory/,/^\/\* ---- Calls/p' tests/files/errors.c >"$here/starved"
for header in hmoe.h extra/muon/hmoe_muon.h; do
    for function in $(sed -n '/ifdef HMOE_IMPLEMENTATION/q; /[ *]hmoe_cuda(/d
            s/^[a-z][a-z0-9_ ]*[ *]\(hmoe_[a-z_]*\)(.*/\1/p' $header); do
        check "$header: $function is starved" grep -q "$function(" "$here/starved"
    done
done

# --- runs -----------------------------------------------------------------------------------------
say_text >"$here/text"
model="--width 16 --layers 2 --heads 2 --context 8 --experts 4 --hidden 9"
recipe="--batch 2 --warmup 2 --eval-every 2 --eval-tokens 64 --save-every 2 --data $here/text"

# runs DIRECTORY COMMAND: what the programs do, in miniature, under a command
runs() {
    at=$BUILD/$1 under=$2 out=$here/$1
    train="$under $at/train_tiny $recipe --out"
    check "$1: train" $train $out $model --steps 2
    check "$1: resume" $train $out --steps 4 --resume
    check "$1: Muon, Top-P" $train $out/p $model --steps 2 --optimizer muon --routing topp \
        --noisy --dropout 0.1 --sizes modse --lb 0.1 --z 0.1
    check "$1: resume Muon" $train $out/p --steps 3 --resume
    check "$1: write" $under $at/generate $out/best -n 20
    check "$1: score" $under $at/generate $out/best --score $here/text --show-tiles
    check "$1: export" $under $at/generate $out --export-mixtral $out/mixtral
    check "$1: refuse" not $under $at/generate $out/p --export-mixtral $out/p
}

if look_for clang; then
    # numbers that were never written; under valgrind, this takes ten times as long
    printf 'int main(int n, char **v) { int a[2]; a[n > 5] = 1; return v && a[0] > 3 ? 1 : 0; }\n' \
        >"$here/bad_memory.c"
    check "the memory sanitizer's mistake" clang -fsanitize=memory "$here/bad_memory.c" \
        -o "$here/bad_memory"
    check "the memory sanitizer sees" not "$here/bad_memory" 1 2 3 4 5
    tests="tests/files/errors tests/files/damaged tests/model/reproducible tests/model/by_hand
        tests/model/gradients extra/muon/test_muon"
    build memory clang 0 "-g -O1 -fsanitize=memory -fno-sanitize-recover=all" train_tiny generate \
        $tests
    for test in $tests; do check "memory: $test" "$BUILD/memory/$test"; done
    runs memory ""
fi

# gcc's OpenMP hides from the sanitizer what it orders; LLVM's tells it, through a tool of its own.
cat >"$here/race.c" <<'END'
#include <omp.h>
int main(void) {
    int n = 0;
    omp_set_num_threads(4);
#pragma omp parallel for RIGHT
    for (int i = 0; i < 1000; i++) n += i % 3;
    return n == 1;
}
END
TSAN_OPTIONS=ignore_noninstrumented_modules=1; export TSAN_OPTIONS
if ! look_for clang; then :
elif ! clang -fopenmp -fsanitize=thread "-DRIGHT=reduction(+:n)" "$here/race.c" -o "$here/right" \
        2>/dev/null || ! "$here/right" 2>/dev/null; then
    echo "clang has no OpenMP with a thread sanitizer here: skipped"
else
    clang -fopenmp -fsanitize=thread -g -DRIGHT= "$here/race.c" -o "$here/race"
    check "the thread sanitizer sees" not "$here/race"
    tests="tests/model/reproducible tests/model/against_naive_float extra/muon/test_muon"
    build threads clang 1 "-g -O1 -fsanitize=thread -DTEST_THREADS=4" train_tiny generate \
        $tests
    for test in $tests; do check "threads: $test" "$BUILD/threads/$test"; done
    recipe="$recipe --threads 4"
    runs threads ""
    recipe=${recipe% --threads 4}
fi

# One thread, and no newer instructions than valgrind knows.
march=-march=x86-64-v3
"${CC:-cc}" $march -E - </dev/null >/dev/null 2>&1 || march=
build plain "${CC:-cc}" 0 "-g -O1 $march" train_tiny generate extra/muon/test_muon
if look_for valgrind; then
    # train_tiny ends without freeing its one static run: "still reachable", and no leak
    kinds=definite,indirect,possible
    valgrind="valgrind --quiet --leak-check=full --show-leak-kinds=$kinds --error-exitcode=99
        --errors-for-leak-kinds=$kinds"
    "${CC:-cc}" -g "$here/bad.c" -o "$here/bad" 2>/dev/null
    check "valgrind sees" not $valgrind "$here/bad"
    check "valgrind: test_muon" $valgrind "$BUILD/plain/extra/muon/test_muon"
    runs plain "$valgrind"
fi

# --- every allocation of the programs fails once --------------------------------------------------

# starve PREPARE AFTER COMMAND...: for n = 0, 1, ...: PREPARE; the program, whose allocation n
# fails, must end with status 1 and one line of its own, or, where the C library has a way out, as
# ever; and AFTER says whether the files are as they should be.
starve() {
    prepare=$1 after=$2 n=0 wrong=; shift 2
    $prepare
    "$@" | grep -v tok/s >fine
    while [ -z "$wrong" ]; do
        $prepare
        rm -f starved
        STARVE=$n STARVED=starved LD_PRELOAD=$here/starve.so "$@" >out 2>err
        status=$?
        if [ $status -eq 0 ]; then
            grep -v tok/s out | cmp -s - fine && [ ! -s err ] || wrong="other output"
        elif [ $status -eq 1 ]; then
            [ "$(wc -l <err)" -eq 1 ] && grep -q '^[a-z_]*: ..*' err || wrong="not one line"
        else wrong="status $status"
        fi
        [ -e starved ] || break
        [ -n "$wrong" ] || $after || wrong="the files are harmed"
        n=$((n + 1))
    done
    [ -n "$wrong" ] || [ $n -ge 10 ] || wrong="so few allocations"
    [ -z "$wrong" ] || { echo "allocation $n: $wrong"; cat err; return 1; }
}
state() { (cd "$1" && find . -type f ! -name lock ! -name 'log.csv*' | sort | xargs cksum); }
weights() { state "$1" | grep -v /training; }                      # that one has seconds in it
rows() { cut -d , -f 1-2,4- "$1/log.csv"; }

if ! printf '#include <stdlib.h>\n#ifndef __GLIBC__\n#error\n#endif\n' |
        "${CC:-cc}" -E - >/dev/null 2>&1; then
    echo "the C library is not glibc: programs without memory are skipped"
else
    check "build starve.so" "${CC:-cc}" -shared -fPIC tests/programs/starve.c -o "$here/starve.so"
    at=$BUILD/plain
    cd "$here" || exit 1
    train="$at/train_tiny $recipe" write=$at/generate
    $train $model --out older --steps 4 >said && $train $model --out half --steps 2 >said
    state older >whole
    weights older >end

    # A fresh run over an older one leaves a run that works, or none.
    older() { rm -rf run; cp -r older run; }
    is_run_or_none() {
        [ -z "$(find run -name '*.tmp')" ] || return 1
        [ ! -e run/config.json ] || "$write" run -n 1 >said
    }
    check "no memory to train" starve older is_run_or_none $train $model --out run --steps 2

    # A run that could not go on can do so later, to the same end.
    half() { rm -rf run; cp -r half run; }
    goes_on() {
        $train --out run --steps 4 --resume >said && weights run | cmp -s - end &&
            [ "$(rows run)" = "$(rows older)" ]
    }
    check "no memory to go on" starve half goes_on $train --out run --steps 4 --resume

    # The others read. An export over an export changes nothing, whether it fails or not.
    "$write" older --export-mixtral mixtral >said
    state mixtral >exported
    as_exported() { state mixtral | cmp -s - exported; }
    check "no memory to export" starve : as_exported "$write" older --export-mixtral mixtral
    check "no memory to write" starve : : "$write" older -n 20
    check "no memory to score" starve : : "$write" older --score text --show-tiles
    as_before() { state older | cmp -s - whole; }
    check "the model is as before" as_before
    cd "$root" || exit 1
fi

summary
