#!/bin/sh
# stack.sh - small stacks, as some systems give them to every thread: the programs compute the same,
# to the last bit. BIN is where the programs are.
# shellcheck source=tests/harness.sh
. "$(dirname "$0")/../harness.sh"
case $(cat "$BUILD/flags" 2>/dev/null) in *fsanitize*)   # they need a larger stack
    summary ;;
esac
cd "$here" || exit 1
say_text >text

# small MAIN THREADS COMMAND...: the first thread has MAIN KB of stack, the others THREADS
small() (
    ulimit -s "$1" || exit 1
    threads=$2; shift 2
    exec env -i PATH="$PATH" OMP_STACKSIZE="$threads" OMP_WAIT_POLICY=passive "$@"
)
score() { "$@" "${BIN}generate" "$out" --score text --threads 4 --routes "$out.csv"; }

# Products with more rows and columns than a panel has, long sums, and many experts.
while read -r options; do
    set -- --data text --steps 3 --batch 2 --threads 4 --eval-every 2 --eval-tokens 600 --overwrite
    # shellcheck disable=SC2086  # several words
    check "usual: $options" "${BIN}train_tiny" "$@" $options --out usual
    out=usual score env >usual.score
    for stacks in "8192 128k" "300 128k" "300 64k" "128 64k"; do
        # shellcheck disable=SC2086
        check "$stacks: $options" small $stacks "${BIN}train_tiny" "$@" $options --out small
        check "$stacks: the same bits" cmp usual/model.safetensors small/model.safetensors
    done
    out=small score small 128 64k >small.score
    check "the same score" cmp usual.score small.score
    check "the same routes" cmp usual.csv small.csv
    check "it writes" gives 0 . small 128 64k "${BIN}generate" small -n 9
done <<'END'
--width 256 --heads 1 --layers 1 --context 300 --hidden 100
--width 64 --layers 1 --experts 64 --k 8 --hidden 8 --optimizer muon --noisy --routing topp
END
summary
