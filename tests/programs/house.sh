#!/bin/sh
# house.sh - which file includes which, as the picture in CONTRIBUTING.md has it: downwards only.
set -u
cd "$(dirname "$0")/../.." || exit 1
passed=0 failed=0

# may FILES: includes in FILES (a pattern for git ls-files) must match one of the given prefixes.
may() {
    files=$1; shift
    for file in $(ls $files 2>/dev/null); do
        for used in $(sed -n 's/^# *include "\([^"]*\)".*/\1/p' "$file"); do
            ok=0
            for allowed in "$@"; do case $used in $allowed) ok=1 ;; esac; done
            if [ $ok = 1 ]; then passed=$((passed + 1))
            else failed=$((failed + 1)); echo "FAILED $file includes $used"; fi
        done
    done
}

may hmoe.h nothing
may hmoe_cuda.cu hmoe.h
may 'extra/*/hmoe_*.h' hmoe.h 'hmoe_*.h'
may extra/router_page/page.h hmoe.h
may cli.h hmoe.h 'extra/*'
may 'train_tiny.c generate.c' hmoe.h cli.h 'extra/*'
may 'extra/*/*.c' hmoe.h 'hmoe_*.h' 'extra/*' 'tests/*.h' '../*'
may 'tests/*/*.c tests/*/*.cpp' hmoe.h hmoe_cuda.cu 'extra/*' '../*.h' '*.h'
# an arrow that points up would show that the check sees nothing
[ $passed -gt 30 ] || { failed=$((failed + 1)); echo "FAILED only $passed includes were found"; }
echo "house: $passed passed, $failed failed"
[ $failed -eq 0 ]
