#!/bin/sh
# top_p.sh - trains Top-P at its defaults on hmoe.h itself, a text that is always there: after
# 200 steps every expert of every layer must have tokens, and a token more than 1.3 experts. With
# the coefficient that HMoE prints for its entropy loss, 0.03, the same check must fail, and the
# program must say so, once. About half a minute on two cores.
# shellcheck source=tests/harness.sh
. "$(dirname "$0")/../harness.sh"
cd "$here" || exit 1
text=$root/hmoe.h evidence="said warned"

train() {         # train OPTIONS...: leaves what it says in `said` and `warned`
    "${BIN}train_tiny" --data "$text" --overwrite --out run --eval-tokens 8192 "$@" >said 2>warned
}
# Of the last evaluation, whose report ends with "1: entropy experts dead   2: ...".
layers() { sed -n '/dead experts:$/{n;p;}' said | tail -n 1; }
alive() {
    layers | awk '{ for (i = 1; i <= NF; i += 4) { n++; bad += $(i + 2) <= 1.3 || $(i + 3) > 0 } }
        END { exit n != 4 || bad > 0 }'
}
warnings() { [ "$(grep -c "warning: layer [1-4] has collapsed" warned)" -eq "$1" ]; }

train --routing topp --steps 200 --eval-every 100
echo "default:    $(layers)"
check "Top-P at its defaults lives" alive
check "and there is nothing to warn of" [ ! -s warned ]
train --routing topp --ent 0.03 --steps 200 --eval-every 50
echo "--ent 0.03: $(layers)"
check "with the coefficient as HMoE prints it, it does not" not alive
check "which is said once, in two lines" warnings 1
check "and no more than that" [ "$(wc -l <warned)" -eq 2 ]
check "with the option to change" grep -q -e "lower --ent" warned
train --width 16 --heads 2 --routing topp --p 1e-9 --ent 0 --gate norm --steps 2
check "tokens with one expert each and a gate of 1 are said" warnings 1
check "with the option to change" grep -q -e "higher --p" warned
train --width 16 --heads 2 --routing topp --p 1e-9 --ent 0 --gate raw --balance work --steps 30
check "with raw gates and even work they are fine" warnings 0
for options in "--experts 1" "--experts 1 --routing topp" "--experts 2 --k 2" \
    "--experts 1 --routing topp --budget 1"; do
    train --width 16 --heads 2 --steps 2 $options
    check "no warning of a collapse: $options" [ ! -s warned ]
done
summary
