#!/bin/sh
# house.sh - which file includes which, as the picture in CONTRIBUTING.md has it: lower rows only.
# shellcheck source=tests/harness.sh
. "$(dirname "$0")/../harness.sh"
cd "$root" || exit 1

matches() {       # matches WORD PATTERN...
    word=$1; shift
    for pattern in "$@"; do
        # shellcheck disable=SC2254  # a pattern it is
        case $word in $pattern) return ;; esac
    done
    return 1
}
# may FILES PATTERN...: each file that a file of FILES includes must match one of these patterns
may() {
    files=$1; shift
    for file in $files; do
        for used in $(sed -n 's/^# *include "\([^"]*\)".*/\1/p' "$file"); do
            check "$file includes $used" matches "$used" "$@"
        done
    done
}

may hmoe.h nothing
may hmoe_cuda.cu hmoe.h
may 'extra/*/hmoe_*.h' hmoe.h 'hmoe_*.h'
may 'extra/*/cli_*.h' 'hmoe_*.h'
may 'extra/run/corpus.h extra/run/prompt.h' cli.h extra/run/text.h extra/run/tokenizer.h
may 'extra/run/save.h' cli.h extra/run/corpus.h extra/run/log.h extra/run/overwrite.h \
    extra/run/resume.h
may 'extra/run/init.h' cli.h extra/run/resume.h 'extra/*/hmoe_*.h'
may 'extra/run/[!cips]*.h extra/*/export.h extra/*/devices.h extra/*/tiles.h extra/*/page.h' cli.h \
    'extra/*/hmoe_*.h' 'hmoe_*.h'
may cli.h 'extra/*/cli_*.h'
may 'train_tiny.c generate.c' hmoe.h cli.h 'extra/*'
may 'extra/*/*.c' hmoe.h 'hmoe_*.h' 'extra/*' 'tests/*.h' '../*'
may 'tests/*/*.c tests/*/*.cpp' hmoe.h hmoe_cuda.cu 'extra/*' '../*.h' '*.h'
check "there is something to check" [ $passed -gt 30 ]
summary
