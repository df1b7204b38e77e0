#!/bin/sh
# The headers as their users meet them: in C99 and C++17, with whatever compilers there are, without
# a warning, in one file or in two; and the program in hmoe.h's top comment, compiled word for word.
# CC, if set, is tried besides gcc, clang, g++ and clang++.
# shellcheck source=tests/harness.sh
. "$(dirname "$0")/../harness.sh"
cd "$here" || exit 1
warnings="-Wall -Wextra -Wpedantic -Wshadow -Werror"

quietly() {       # the command succeeds and says nothing
    if "$@" >output 2>&1 && [ ! -s output ]; then return; fi
    head -n 12 output
    return 1
}

cp "$root/hmoe.h" "$root/extra/muon/hmoe_muon.h" "$root/extra/parallel/hmoe_parallel.h" \
    "$root/extra/parallel/hmoe_placement.h" "$root/extra/interop/hmoe_interop.h" .

# For each header: declarations alone, which a program uses; the implementation; both in one file.
main='int main(void) { return hmoe_default_config().E != 8; }'
headers="hmoe hmoe_muon hmoe_placement hmoe_parallel hmoe_interop"
for header in $headers; do
    for suffix in c cpp; do
        printf '#include "%s.h"\n%s\n' $header "$main" >declared_$header.$suffix
        printf '#define HMOE_IMPLEMENTATION\n#include "%s.h"\n' $header >implemented_$header.$suffix
        printf '#define HMOE_IMPLEMENTATION\n#include "%s.h"\n%s\n' $header "$main" >both.$suffix
    done
done

{
    echo '#define HMOE_IMPLEMENTATION'
    for header in $headers; do echo "#include \"$header.h\""; done
} >all.c
cp all.c all.cpp
printf '#define HMOE_NO_FILES\n#define HMOE_IMPLEMENTATION\n#include "hmoe.h"\n%s\n' "$main" >no_files.c
cp no_files.c no_files.cpp

# variants COMPILER LANGUAGE SUFFIX: everything that one compiler is asked
variants() {
    compiler=$1 language=$2 suffix=$3
    openmp=
    echo 'int main(void) { return 0; }' >probe.$suffix
    if $compiler -fopenmp probe.$suffix -o probe >/dev/null 2>&1; then openmp=-fopenmp; fi
    for real in float double; do
        flags="-std=$language $warnings -DHMOE_REAL=$real"
        for omp in "" $openmp; do
            check "$compiler $language $real $omp: implementation" quietly \
                $compiler $flags $omp all.$suffix -c -o implemented.o
        done
        for header in $headers; do
            what="$compiler $language $real"
            check "$what: declarations of $header.h" quietly \
                $compiler $flags declared_$header.$suffix -c -o declared.o
            # the last implementation.o may be one with OpenMP: the other file need not know
            check "$what: two files, one program" quietly \
                $compiler $openmp declared.o implemented.o -o two -lm
            check "$what: runs" quietly ./two
        done
    done
    check "$compiler $language: hmoe.h without files" quietly \
        $compiler -std=$language $warnings no_files.$suffix -o one -lm
    check "$compiler $language: runs without files" quietly ./one
    check "$compiler $language: one file, one program" quietly \
        $compiler -std=$language $warnings both.$suffix -o one -lm
    check "$compiler $language: runs" quietly ./one
}

# Flags under which a NaN cannot be seen are refused, with what to do.
refuses_fast_math() {
    for flag in -ffast-math -Ofast -ffinite-math-only; do
        $1 $flag -c no_files.$2 -o fast.o >output 2>&1 && { echo "it takes $flag"; return 1; }
        grep -q 'Compile hmoe.h without -ffast-math' output || { cat output; return 1; }
    done
}
has_standard() { echo 'int main() {}' >standard.cpp && "$1" -std="$2" -c standard.cpp -o standard.o; }

tried=" "
for compiler in ${CC:-} gcc clang g++ clang++; do
    case $tried in *" $compiler "*) continue ;; esac
    tried="$tried$compiler "
    # a plain cc is one of the others, where there are any
    if [ "$compiler" = cc ] && { command -v gcc || command -v clang; } >/dev/null; then continue; fi
    if ! command -v "$compiler" >/dev/null 2>&1; then
        echo "no $compiler here: skipped"
        continue
    fi
    case $compiler in
        *++*) variants "$compiler" c++17 cpp
            check "$compiler refuses fast mathematics" refuses_fast_math "$compiler" cpp
            for standard in c++20 c++2b; do
                has_standard "$compiler" $standard >/dev/null 2>&1 || continue
                check "$compiler $standard" quietly \
                    $compiler -std=$standard $warnings all.cpp -c -o implemented.o
            done ;;
        *)    variants "$compiler" c99 c
            check "$compiler refuses fast mathematics" refuses_fast_math "$compiler" c ;;
    esac
done

# The example: the block that is indented under A WHOLE PROGRAM, up to the next heading.
compiler=${CC:-cc}
sed -n '/^A WHOLE PROGRAM/,/^CONTENTS/{
    /^A WHOLE PROGRAM/d
    /^CONTENTS/d
    s/^       //
    p
}' hmoe.h >example.c
check "the example is there" sh -c 'test "$(grep -c "int main(void)" example.c)" -eq 1'
check "the example compiles" quietly $compiler -std=c99 $warnings -O2 example.c -o example -lm
check "the example runs" eval "./example >curve"
# its cross-entropy starts near ln 27 = 3.3 and ends far below; its last line is empty
falls() {
    awk '/^step/ { last = $4; if (!n++) first = last }
        END { exit !(n == 40 && first > 3 && first < 3.6 && last < first / 2 && $0 == "") }' curve
}
evidence=curve
check "the example's cross-entropy falls" falls

# Both programs under clang's sanitizers, which find what gcc's do not: 0 added to NULL, for example.
sanitizers="-std=c99 -O0 -fsanitize=address,undefined -fno-sanitize-recover=all"
if have clang && clang $sanitizers probe.c -o probe >/dev/null 2>&1; then
    for program in train_tiny generate; do
        check "clang's sanitizers: $program" quietly \
            clang $sanitizers -I"$root" "$root/$program.c" -o $program -lm
    done
    say_text >text
    shape="--data text --width 8 --layers 2 --heads 2 --context 8 --experts 4 --hidden 5 --out run"
    check "help" gives 0 "^usage" ./train_tiny --help
    check "a bad option" gives 2 "--lr x: " ./train_tiny --lr x
    for recipe in "" "--optimizer muon --dropout 0.1" "--sizes 0,9,11,13 --balance work --noisy" \
        "--routing topp --budget 0.5"; do
        recipe="$recipe --batch 2 --accum 2 --threads 1 --eval-tokens 100 --steps 3"
        check "trains $recipe" gives 0 "^stopped" ./train_tiny $shape $recipe --overwrite --stop-at 2
        check "goes on" gives 0 "^final" ./train_tiny --resume $shape $recipe
        check "scores" gives 0 "^nll" ./generate run --score text --routes routes --devices 2
        check "writes" gives 0 "" ./generate run/best -n 9 --prompt to
    done
fi
summary
