#!/bin/sh
# fuzz.sh DIR SECONDS - looks for files that break the readers (fuzz.c), from where it stopped
# the last time: DIR/corpus keeps what reaches new code. An input that breaks something is
# left in DIR; DIR/fuzz FILE shows it again.
dir=$1 seconds=$2
command -v clang >/dev/null || { echo 'make fuzz: needs clang, with its libFuzzer' >&2; exit 1; }
mkdir -p "$dir/corpus"
# trace-cmp is slow, and the harness's own words do its work; it looks for leaks itself, too
clang -std=c99 -O2 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
    -fno-sanitize-coverage=trace-cmp -I. -o "$dir/fuzz" tests/files/fuzz.c -lm &&
    "$dir/fuzz" --seeds "$dir/corpus" &&
    ASAN_OPTIONS=quarantine_size_mb=4 "$dir/fuzz" -max_total_time="$seconds" \
        -max_len=8192 -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=16 -detect_leaks=0 \
        -print_final_stats=1 -artifact_prefix="$dir/" "$dir/corpus"
