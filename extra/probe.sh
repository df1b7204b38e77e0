#!/bin/sh
# probe.sh DIR - finds out what the compiler can do, by compiling and linking small programs, never
# by its name. DIR/flags receives the options to compile with, DIR/libraries what to link with.
# CC, CFLAGS, LDFLAGS, DEBUG, OPENMP and the lists FLAGS and WANTED come from the environment, as
# the Makefile has them.
cd "$1" && rm -f flags libraries || exit 1
flags=$FLAGS libraries='' found=''

program() { printf '%s\n' "$@" >probe.c; }

# try FLAGS LIBRARIES: do they compile and link, without a warning? A flag is for this machine, so a
# program for another one is built with CFLAGS that come later and win.
# shellcheck disable=SC2086  # lists of words
try() { $CC -Werror $1 $CFLAGS probe.c -o probe $LDFLAGS $2 -lm; } >probe.log 2>&1

program 'int main(void) { return 0; }'
try || { cat probe.log; echo "$CC: cannot compile a program, see above"; exit 1; }
if [ "$DEBUG" = 1 ]; then
    debug='-fsanitize=address,undefined -fno-sanitize-recover=all'
    flags="$flags -O1 -g"
    if try "$debug"; then flags="$flags $debug -fno-omit-frame-pointer -Wno-pass-failed"
    else found="$found, no sanitizers"; fi
else flags="$flags -O3"; fi
for flag in $WANTED; do
    if try $flag; then flags="$flags $flag"; else found="$found, no $flag"; fi
done

# The x87 of 32-bit machines rounds where it likes; their SSE does not.
program '#ifndef __i386__' '#error' '#endif' 'int main(void) { return 0; }'
if try '-msse2 -mfpmath=sse'; then flags="$flags -msse2 -mfpmath=sse"; fi

# On Windows gcc spills whole vectors to a stack that it aligns to 16 bytes alone (its bug 54412).
program '#ifndef _WIN32' '#error' '#endif' 'int main(void) { return 0; }'
if try -Wa,-muse-unaligned-vector-move; then flags="$flags -Wa,-muse-unaligned-vector-move"; fi

program '#include <omp.h>' \
        'int main(void) { int i, n = 0;' \
        '_Pragma("omp parallel for reduction(+:n)")' \
        'for (i = 0; i < 9; i++) n += omp_get_max_threads(); return n < 9; }'
openmp=no mac='-Xpreprocessor -fopenmp'   # Apple's clang has OpenMP, but not its library
if [ "$OPENMP" = 0 ]; then :
elif try -fopenmp; then openmp=-fopenmp libraries=-fopenmp
elif try "$mac" -lomp; then openmp=$mac libraries=-lomp
else for at in /opt/homebrew/opt/libomp /usr/local/opt/libomp; do
    [ "$openmp" = no ] && try "$mac -I$at/include" "-L$at/lib -lomp" &&
        openmp="$mac -I$at/include" libraries="-L$at/lib -lomp"
done; fi
if [ "$openmp" != no ]; then flags="$flags $openmp" found="OpenMP$found"
else
    program 'int main(void) { return 0; }'
    found="no OpenMP: one thread$found"
    if try -fopenmp-simd; then flags="$flags -fopenmp-simd -DHMOE_SIMD"; fi
fi
rm -f probe probe.exe probe.c probe.log
echo "$CC: $found ($flags)"
echo "$libraries" >libraries
echo "$flags" >flags.new && mv flags.new flags
