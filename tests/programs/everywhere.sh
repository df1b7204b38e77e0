#!/bin/sh
# everywhere.sh - the project on other machines: built with whatever cross compilers are here,
# run under qemu, wine, or as it is. On each: the tests in C, a run, its text, its lock; then each
# platform reads, scores and goes on with what the others wrote.
#
#   aarch64   64 bits, NEON, OpenMP; all tests             musl   another libc; all tests
#   i686      32 bits; all tests                           windows  x86-64 under wine; all tests
#   s390x     big-endian; the tests of files and numbers: qemu is slow there, and what is left out
#             tests mathematics that knows no byte order
#
# PLATFORMS="i686 s390x" tries these alone.
#
# Programs are static, so that no libraries
# for other machines are searched. One thread where OpenMP says 0: i686's libgomp does not get a
# parallel loop done on some machines, and qemu gains nothing by it.
# shellcheck source=tests/harness.sh
. "$(dirname "$0")/../harness.sh"
WINEPREFIX=$here/wine WINEDEBUG=-all WINEDLLOVERRIDES="mscoree,mshtml="
export WINEPREFIX WINEDEBUG WINEDLLOVERRIDES
clean() { [ ! -d "$WINEPREFIX" ] || wineserver -k; }
out=$BUILD/everywhere platforms='' evidence=said

says() {          # says PATTERN COMMAND...: it prints this, here or there
    pattern=$1; shift
    "$@" >"$here/said" 2>&1 </dev/null
    grep -q -e "$pattern" "$here/said"
}
quietly() { "$@" >"$here/said" 2>&1; }
in_place() (cd "$here" && exec "$@" </dev/null)

all="${TESTS-tests/model/gradients tests/model/against_naive tests/model/by_hand extra/muon/test_muon
    tests/model/reproducible tests/files/errors tests/model/extremes tests/files/damaged
    tests/model/against_naive_float}"

# platform NAME COMPILER EMULATOR OPENMP CFLAGS TESTS: builds it, makes NAME/train_tiny and
# NAME/generate of what the emulator needs, and runs the tests. EMULATOR - is none.
platform() {
    name=$1 compiler=$2 emulator=$3 openmp=$4 flags=$5 tests=$6 dir=$out/$1 targets=
    case " ${PLATFORMS:-$name} " in *" $name "*) ;; *) return ;; esac
    have "$compiler" || { echo "$name: no $compiler here: skipped"; return; }
    for test in $tests; do targets="$targets $dir/$test"; done
    check "build for $name" quietly make -C "$root" CC="$compiler" OPENMP="$openmp" \
        CFLAGS="-Werror $flags" LDFLAGS=-static BACKEND=cpu BUILD="$dir" BIN="$dir/" \
        "$dir/train_tiny" "$dir/generate" $targets
    end=; [ "$name" != windows ] || end=.exe
    [ -f "$dir/generate$end" ] || { check "$name: programs" false; return; }
    [ "$emulator" = - ] || have "$emulator" ||
        { echo "$name: built; no $emulator to run it with: skipped"; return; }
    [ "$emulator" != - ] || emulator=
    mkdir "$here/$name"
    printf '#!/bin/sh\nprogram=$1; shift\nexec %s "%s/$program%s" "$@"\n' "$emulator" "$dir" \
        "$end" >"$here/$name/run"
    for program in train_tiny generate; do
        printf '#!/bin/sh\nexec "%s" %s "$@"\n' "$here/$name/run" $program >"$here/$name/$program"
    done
    chmod +x "$here/$name"/*
    if [ -z "$emulator" ] && ! "$here/$name/generate" --help >"$here/said" 2>&1; then
        echo "$name: built; this system does not run it: skipped"; return
    fi
    platforms="$platforms $name"
    [ "$name" != native ] || return
    for test in $tests; do
        add "$test on $name" in_place "$here/$name/run" "$test"
    done
}

model="--width 16 --layers 2 --heads 2 --context 8 --experts 4 --hidden 9"
recipe="--data text --batch 2 --threads 1 --warmup 3 --eval-tokens 200 --lr 0.01 --min-lr 0.01"
say_text >"$here/text"

platform native "${CC:-cc}" - "${OPENMP:-1}" "" ""
platform musl musl-gcc - 1 "" "$all"
platform i686 i686-linux-gnu-gcc - 0 "" "$all"
if have wine && mkdir "$WINEPREFIX"; then   # one server, which no program has to start or outlive
    wineserver -p; wineboot -i
fi >"$here/said" 2>&1
platform windows x86_64-w64-mingw32-gcc wine 1 "" "$all"
platform aarch64 aarch64-linux-gnu-gcc qemu-aarch64 1 "" "$all"
platform s390x s390x-linux-gnu-gcc qemu-s390x 0 "" "${TESTS-tests/model/by_hand
    tests/model/reproducible tests/files/errors tests/files/damaged}"
cd "$here" || exit 1

in_small_stacks() (ulimit -s 300 && OMP_STACKSIZE=128k exec "$@")
score() {         # score PLATFORM DIR: prints it
    "$1/generate" "$2" --score text --threads 1 2>&1 | sed -n 's/^nll \([0-9.]*\) .*/\1/p'
}

# Each makes a run (twice, so that the second replaces the first), writes text, and locks.
for p in $platforms; do
    check "$p trains" says "^final: " "$p/train_tiny" $recipe $model --steps 2 --out "run-$p"
    check "$p trains over it" says "^final: " "$p/train_tiny" $recipe $model --steps 6 \
        --eval-every 2 --overwrite --out "run-$p"
    case $p in native|musl)
        check "$p: in small stacks" says "^final: " in_small_stacks "$p/train_tiny" --data text \
            --width 256 --heads 1 --context 300 --threads 2 --steps 1 --batch 2 --out "small-$p" ;;
    esac
    check "$p: log.csv has 7 lines and no others" [ "$(wc -l <"run-$p/log.csv")" -eq 7 ]
    check "$p: files are whole" [ "$(find "run-$p" -name '*.tmp' -o -name '*.new')" = "" ]
    "$p/generate" "run-$p" -n 400 --temperature 3 --threads 1 >written 2>said
    check "$p writes 400 bytes, those of the text" \
        [ "$(wc -c <written)+$(tr -d 'a-z \n' <written | wc -c)" = "400+0" ]
    check "$p: which are some lines" [ "$(wc -l <written)" -gt 2 ]
    "$p/train_tiny" $recipe $model --steps 100000000 --save-every 100000000 \
        --eval-every 100000000 --out "lock-$p" >said-too 2>&1 & running=$!
    i=0
    while [ "$(wc -l 2>/dev/null <"lock-$p/log.csv" || echo 0)" -lt 3 ] && [ $i -lt 300 ]; do
        sleep 0.1; i=$((i + 1))
    done
    check "$p: a second run is refused" says "in use by process [1-9][0-9]*:" \
        "$p/train_tiny" $recipe $model --steps 1 --out "lock-$p"
    kill -9 $running; wait $running 2>/dev/null; running=
    check "$p: the lock is gone with its process" says "^final: " \
        "$p/train_tiny" $recipe $model --steps 1 --out "lock-$p"
    check "$p: one directory by two names" says "holds this model" \
        "$p/generate" "run-$p" --export-mixtral "./run-$p/../run-$p"
    check "$p exports" says "a Mixtral of" "$p/generate" "run-$p" --export-mixtral "mixtral-$p"
done

# A file beyond 4 GB, nearly all of it a hole: its size is known, wherever a long has 32 bits.
for p in $platforms; do
    [ -d large ] || cp -r "run-$p" large
    [ -f large/is ] || dd if=/dev/zero of=large/model.safetensors bs=1 count=1 \
        seek=5000000000 >said 2>&1 && : >large/is
    check "$p: 5 GB" says "does not end where the file does" "$p/generate" large --score text
done

# What one wrote, all others read: the same score to the last digits, and the same run from there.
first=${platforms# }; first=${first%% *}
if [ -n "$first" ]; then
    cp -r "run-$first" whole
    says "^final: " "$first/train_tiny" $recipe --resume --steps 9 --out whole
    end=$(sed -n 's/^final: val_loss \([0-9.]*\) .*/\1/p' said)
    for by in $platforms; do
        for of in $platforms; do
            check "$by scores what $of wrote" near "$(score "$by" "run-$of")+0" \
                "$(score "$first" "run-$of")" 1e-5
        done
        check "$by scores the Mixtral of $first" near "$(score "$by" "mixtral-$first")+0" \
            "$(score "$first" "run-$first")" 1e-5
    done
    before=
    for by in $platforms $first; do
        if [ -n "$before" ]; then
            check "$by goes on with the run of $before" says "^final: " \
                "$by/train_tiny" $recipe --resume --steps 9 --out "run-$before"
            check "and ends where it should" \
                near "$(sed -n 's/^final: val_loss \([0-9.]*\) .*/\1/p' said)+0" "$end" 1e-4
        fi
        before=$by
    done
fi

summary
