#!/bin/sh
# programs.sh - drives train_tiny and generate as a user would, with a tiny model on a text
# made here: options, errors, interruptions, full disks. BIN is where the programs are, as "build/".
set -u
LC_ALL=C; export LC_ALL
case ${BIN:-} in /*) ;; *) BIN=$PWD/${BIN:-} ;; esac
train_tiny=${BIN}train_tiny generate=${BIN}generate
root=$(cd "$(dirname "$0")/../.." && pwd)
here=$(mktemp -d "${TMPDIR:-/tmp}/hmoe-programs-XXXXXX") || exit 1
running=
trap 'if [ -n "$running" ]; then kill -9 "$running"; fi 2>/dev/null; rm -rf "$here"' EXIT
trap 'exit 1' HUP INT TERM
cd "$here" || exit 1
passed=0 failed=0

check() {         # check NAME COMMAND...: the command succeeds
    name=$1; shift
    if "$@"; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAILED $name: $*"; sed 's/^/    /' stderr; fi
}
gives() {         # gives STATUS PATTERN COMMAND...: and says it in at most two lines on stderr
    status=$1 pattern=$2; shift 2
    "$@" >stdout 2>stderr
    got=$?
    [ "$got" -eq "$status" ] || { echo "status $got, should be $status" >>stderr; return 1; }
    if [ "$status" -eq 0 ]; then [ ! -s stderr ] && grep -q -e "$pattern" stdout; return; fi
    [ "$(wc -l <stderr)" -le 2 ] && head -n 1 stderr | grep -q -e '^[a-z_]*: .*'"$pattern"
}
train() { "$train_tiny" --data text $model $recipe "$@"; }
anew() { train --overwrite "$@"; }
same() { cmp -s "$1" "$2"; }
absent() { [ ! -e "$1" ]; }
state() { (cd "$1" && find . -type f ! -name lock | sort | xargs cksum); }
rows() { tail -n +2 "$1" | cut -d , -f 1-2,4-; }                    # of a log, without its seconds
wait_for_rows() {                                                   # file, count
    i=0
    while [ "$(wc -l 2>/dev/null <"$1" || echo 0)" -le "$2" ] && [ $i -lt 300 ]; do
        sleep 0.1; i=$((i + 1))
    done
}
near() { awk "BEGIN { d = $1 - $2; exit !(d < 1e-5 && d > -1e-5) }"; }

# A text of a few words, 3000 bytes, the same each time.
awk 'BEGIN { s = 1; split("to be or not that is the question whether it nobler in mind", w, " ")
    while (n < 3000) { s = (s * 1103 + 12345) % 65536; x = w[1 + s % 13] (s % 7 ? " " : "\n")
        printf "%s", x; n += length(x) } }' | head -c 3000 >text
model="--width 16 --layers 2 --heads 2 --context 8 --experts 4 --hidden 9"
recipe="--batch 2 --threads 1 --warmup 3 --eval-tokens 200 --lr 0.01 --min-lr 0.01"
endless="--steps 100000000 --save-every 100000000 --eval-every 100000000"
: >stderr

# --- options --------------------------------------------------------------------------------------
while read -r options; do
    eval "set -- $options"
    check "usage: $options" gives 2 "${1%%=*}" "$train_tiny" --data text --out u "$@"
done <<'END'
--frobnicate
--lr nan
--lr inf
--lr 1e999
--lr -1
--lr 1x
--lr " 1"
--lr 0x1
--lr ""
--lr
--min-lr 1
--steps 1.5
--steps -1
--steps 3e2
--steps 99999999999999999999
--resume=1
--routing topq
--gate none
--p 0
--p 1.01
--k 0
--width 0
--layers 0
--kv-heads 0
--context 0
--experts 0
--experts 257
--hidden 0
--sizes twisted
--sizes 1,2
--sizes 0,0,0,0,0,0,0,0
--balance heads
--balance-rate 2
--budget 0 --routing topp
--budget 0.5
--budget 0.5 --routing topk
--beta1 1
--beta2 -0.1
--clip -1
--warmup -1
--batch 0
--batch 16777216
--accum 0
--eval-every 0
--eval-tokens 0
--save-every 0
--pp -1
--ent x
--seed -1
--seed 18446744073709551616
--threads 0
--threads two
--backend cuda
--backend gpu
--precision half
--precision bf16
--optimizer muon --backend cuda
extra
END
check "k > E" gives 2 "K" "$train_tiny" --data text --out u --experts 4 --k 5
check "C % NH" gives 2 "" "$train_tiny" --data text --out u --width 30 --heads 4
check "NH % NKV" gives 2 "NKV must divide NH" "$train_tiny" --data text --out u --kv-heads 3
check "odd head" gives 2 "" "$train_tiny" --data text --out u --width 12 --heads 4
check "ambiguous" gives 2 "several options begin like this" "$train_tiny" --data text --out u --l 3 --steps 0
check "no control codes in an error" gives 2 'a?\[2Jb?c: unexpected' "$train_tiny" "$(printf 'a\033[2Jb\nc')"
check "no directory made by any of these" absent u
check "help" gives 0 "usage: train_tiny" "$train_tiny" --help
for option in data tokens tokens-val tokenizer out resume overwrite init upcycle slim width layers heads kv-heads context experts hidden sizes routing k p gate \
    noisy balance balance-rate budget pp lb ent z steps batch accum lr min-lr warmup weight-decay beta1 beta2 clip optimizer muon-lr \
    dropout eval-every eval-tokens final-tokens save-every seed threads backend precision; do
    check "help names --$option" grep -q -e "^  --$option " stdout
done
check "help of generate" gives 0 "usage: generate" "$generate" --help
for options in "" "a b" "a --top-p 0" "a --top-p 2" "a --top-k -1" "a --temperature -1" "a -n x" \
    "a -n" "a -n -1" "a --seed 1.5" "a --threads 0" "a --backend cuda" \
    "a --precision bf16" "a --precision half" "a --frobnicate" "a -x" "a --export-mixtral" \
    "a --export-mixtral u --score text" "a --export-mixtral u --prompt to"; do
    check "usage of generate: $options" gives 2 "" "$generate" $options
done
check "built without cuda" gives 2 "make cuda" train --backend cuda --precision bf16 --out u
check "generate: built without cuda" gives 2 "make cuda" "$generate" a --score text --backend cuda
check "generate: cuda is for scores" gives 2 "only for --score" "$generate" a --backend cuda
check "bf16 is for cuda" gives 2 "cpu computes in float32" train --precision bf16 --out u
check "no directory made by these" absent u

# --- the text -------------------------------------------------------------------------------------
check "missing text" gives 1 "cannot read nothing" "$train_tiny" --data nothing --out u
check "text is a directory" gives 1 "cannot read" "$train_tiny" --data . --out u
: >empty; head -c 72 text >short; head -c 73 text >enough
check "empty text" gives 1 "at least 73" "$train_tiny" --data empty --out u
check "short text" gives 1 "72 bytes.*at least 73" "$train_tiny" --data short --out u
check "text just long enough" gives 0 "^final: " anew --context 64 --data enough --steps 1 --out u
check "context 1" gives 1 "at least 11" anew --context 1 --data empty --out u
head -c 11 text >eleven
anew --context 1 --data eleven --steps 1 --out u >stdout 2>stderr
check "eleven bytes" grep -q "^final: .* over 1 tokens" stdout
i=0; while [ $i -lt 256 ]; do printf "\\$(printf %03o $i)"; i=$((i + 1)); done >bytes
cat bytes bytes bytes bytes >binary
check "binary text" gives 0 "^final: " train --data binary --steps 2 --out binary-run
check "and it writes" gives 0 "" "$generate" binary-run -n 20 --threads 1
tr -dc o <text | head -c 100 >same-letter
anew --data same-letter --steps 1 --out u >stdout 2>stderr
check "one distinct byte" grep -q "^final: val_loss 0.000000" stdout

# --- a run, and the same run in two parts ---------------------------------------------------------
check "a run" gives 0 "^final: " train --steps 30 --eval-every 5 --save-every 7 --out a
tail -n 1 stdout >final-a
check "its last line" grep -q -x \
    'final: val_loss [0-9]*\.[0-9]\{6\} nats/token over 299 tokens, [0-9.]* tok/s, [0-9.]* s' final-a
check "its files" ls a/config.json a/model.safetensors a/training.safetensors a/log.csv a/recipe.txt \
    a/best/config.json a/best/model.safetensors a/tokenizer.json a/tokenizer_config.json \
    a/best/tokenizer.json a/best/tokenizer_config.json >/dev/null
check "best has no training state" absent a/best/training.safetensors
check "tokenizer: newline, space, letters" \
    grep -q '"\\u010a": 0, "\\u0120": 1, "\\u0061": 2, "\\u0062": 3,' a/tokenizer.json
check "nothing else is left" [ "$(find a -type f | wc -l)" -eq 12 ]
check "log's columns" [ "$(head -n 1 a/log.csv)" = \
    "step,tokens,seconds,lr,loss,ce,lb,pp,ent,z,grad_norm,activated,experts,val_loss" ]
check "log's rows" awk -F , 'NR > 1 && (NF != 14 || $1 != NR - 1 || $2 != 16 * $1 || $13 != 2 ||
    ($14 != "") != ($1 % 5 == 0)) { bad = 1 } END { exit bad || NR != 31 }' a/log.csv
check "first part" gives 0 "^final: " train --steps 15 --eval-every 5 --save-every 7 --out b
check "second part" gives 0 "^final: " train --steps 30 --eval-every 5 --resume --out b
tail -n 1 stdout >final-b
check "resumed: same weights" same a/model.safetensors b/model.safetensors
check "resumed: same best" same a/best/model.safetensors b/best/model.safetensors
rows a/log.csv >rows-a; rows b/log.csv >rows-b
check "resumed: same log" same rows-a rows-b
check "--stop-at" gives 0 "^stopped after step 7; to go on: " train --steps 30 --eval-every 5 \
    --stop-at 7 --out halted
check "it stopped there" [ "$(tail -n 1 halted/log.csv | cut -d , -f 1)" = 7 ]
check "and goes on" gives 0 "^final: " train --steps 30 --eval-every 5 --stop-at 7 --resume \
    --out halted
check "--stop-at: same weights" same a/model.safetensors halted/model.safetensors
check "resumed: same last line" [ "$(cut -d , -f 1 final-a)" = "$(cut -d , -f 1 final-b)" ]
check "two threads" gives 0 "" train --steps 30 --eval-every 5 --out c --threads 1 --threads 2
check "two threads: same weights" same a/model.safetensors c/model.safetensors
rows c/log.csv >rows-c
check "two threads: same log" same rows-a rows-c
check "accumulated" gives 0 "" train --steps 1 --batch 1 --accum 2 --out d
check "accumulated: same first loss" near "$(sed -n 2p d/log.csv | cut -d , -f 6)" \
    "$(sed -n 2p a/log.csv | cut -d , -f 6)"
for run in a b; do
    check "a few more steps" gives 0 "" train --steps 33 --resume --out $run
done
check "same moments: same weights later on" same a/model.safetensors b/model.safetensors
muon="--optimizer muon --muon-lr 0.01 --dropout 0.2"
check "Muon and dropout" gives 0 "^final: " train --steps 12 --out m $muon
check "Muon: first part" gives 0 "^final: " train --steps 5 --out n $muon --threads 1
check "Muon: second part" gives 0 "^final: " train --steps 12 --out n --resume $muon
check "Muon: same weights" same m/model.safetensors n/model.safetensors

# --- resuming -------------------------------------------------------------------------------------
state a >before; touch mark
check "steps are reached" gives 0 "^final: " train --steps 20 --resume --out a
state a >after
check "no file has changed" same before after
check "nor been written" [ -z "$(find a -type f -newer mark)" ]
check "nothing to resume" gives 1 "no run in none" train --resume --out none
check "and no directory made" absent none
check "Muon: goes on as Muon" gives 0 "^final: " train --steps 14 --out m --resume
check "Muon: nothing else does" gives 2 "--optimizer.*run in m has" train --resume --out m \
    --optimizer adamw
for other in "width 32" "layers 3" "heads 1" "kv-heads 1" "context 4" "experts 2" "hidden 10" "sizes modse" \
    "optimizer muon" "sizes 1,2" "routing topp" "gate raw" "noisy" "balance work" "seed 7"; do
    check "other --$other" gives 2 "--${other%% *}.* in a has" train --resume --out a --$other
done
check "same again" gives 0 "^final: " train --resume --out a --steps 1 --sizes arithmetic --k 2 \
    --seed 1337 --pp 0.01 --gate norm --routing topk --p 0.57 --lb 0
printf 'not Z\n' | cat text - >text-Z
check "resume with a strange byte" gives 1 "byte 90 .*offset 3004" \
    train --resume --out a --data text-Z

# --- interruptions --------------------------------------------------------------------------------
for signal in INT TERM HUP; do
    rm -rf s
    "$train_tiny" --data text $model $recipe $endless --out s >said 2>stderr & running=$!
    wait_for_rows s/log.csv 3
    check "locked by $signal's run" gives 1 "process $running" train --out s --steps 1
    kill -$signal $running; wait $running; status=$?; running=
    check "SIG$signal: status 0" [ $status -eq 0 ]
    check "SIG$signal: no final line" [ "$(grep -c ^final said)" -eq 0 ]
    step=$(tail -n 1 s/log.csv | cut -d , -f 1)
    check "SIG$signal: goes on" gives 0 "^final: " train --resume --out s --steps $((step + 5))
    check "SIG$signal: a run that did not stop" gives 0 "" anew --out t --steps $((step + 5)) \
        --eval-every 100000000 --save-every 100000000
    check "SIG$signal: same weights" same s/model.safetensors t/model.safetensors
done
"$train_tiny" --data text $model $endless --lr 0.005 --threads 1 --out "it's" >said 2>stderr &
running=$!
wait_for_rows "it's/log.csv" 3
kill -INT $running; wait $running; running=
command=$(tail -n 1 said | sed -n 's/^stopped after step [0-9]*; to go on: \(.* --resume --out .*\)$/\1/p')
check "the command to go on is said" [ -n "$command" ]
check "and at the start, too" grep -qF "this continues it: $command" said
step=$(tail -n 1 "it's/log.csv" | cut -d , -f 1)
check "and works" gives 0 "^final: " sh -c \
    "$command --threads 1 --eval-tokens 200 --steps $((step + 2))"

(trap '' HUP; exec "$train_tiny" --data text $model $recipe $endless --out s --overwrite) >said 2>stderr & running=$!
wait_for_rows s.new/log.csv 3
kill -HUP $running; wait_for_rows s.new/log.csv $(($(wc -l <s.new/log.csv) + 50))
check "nohup: goes on" kill -STOP $running
before=$(tail -n 2 s.new/log.csv | head -n 1 | cut -d , -f 1); sleep 2; kill -CONT $running
wait_for_rows s.new/log.csv $((before + 50)); kill -INT $running; wait $running; running=
check "the time of Ctrl-Z is none of the run's" awk -F , -v row=$before 'NR > row { x[NR] = $3 }
    END { exit !(x[row + 10] - x[row + 1] < 1.5) }' s/log.csv
train --steps 400 --out cut-off 2>stderr | true
check "whose output nobody reads" [ "$(tail -n 1 cut-off/log.csv | cut -d , -f 1)" = 400 ]
check "is saved" gives 0 "^final: " train --resume --out cut-off
"$train_tiny" --data text $model $recipe $endless --out lost >said 2>stderr & running=$!
wait_for_rows lost/log.csv 3
rm -rf lost; kill -INT $running; wait $running; status=$?; running=
check "a lost directory: status 1" [ $status -eq 1 ]
check "a lost directory is said" grep -q "the directory lost was removed" stderr

# --- null experts, bias balancing, budgets: together and apart -------------------------------------
steered() {       # steered OPTIONS...: stopped after two steps and gone on with, the bits are the same
    rm -rf straight cut
    check "$*: four steps" gives 0 "^final: " train "$@" --steps 4 --out straight
    check "$*: two" gives 0 "^stopped after step 2" train "$@" --steps 4 --stop-at 2 --out cut
    check "$*: what it is stands there" gives 0 "^final: " train "$@" --resume --steps 4 --out cut
    check "$*: the same weights and state" same straight/model.safetensors cut/model.safetensors
    rows straight/log.csv >straight-rows; rows cut/log.csv >cut-rows
    check "$*: the same log" same straight-rows cut-rows
    check "$*: scores" gives 0 "^nll [0-9.]* nats" "$generate" cut/best --score text
    check "$*: writes" gives 0 "" "$generate" cut/best -n 20 --prompt to
    count=$((count + 1))
}
count=0
for sizes in 9,11,13,15 9,0,13,15; do
    for balance in off tokens work; do
        steered --sizes $sizes --balance $balance --balance-rate 0.01
        for budget in "" "--budget 0.5"; do
            steered --sizes $sizes --balance $balance --routing topp $budget
        done
    done
done
check "all 6 combinations of Top-K and 12 of Top-P" [ $count -eq 18 ]
check "another budget is another model" gives 2 "--budget 0.4: the model in cut has 0.5" \
    train --resume --out cut --routing topp --budget 0.4
check "another balance is, too" gives 2 "--balance tokens: the model in cut has work" \
    train --resume --out cut --balance tokens
train --out biased --steps 1 --balance work >stdout 2>stderr
check "a bias cannot be exported" gives 1 "adds a bias to P" \
    "$generate" biased --export-mixtral u
train --out wide --steps 1 --routing topp --sizes 1,1,1,3 --budget 0.3 >stdout 2>stderr
check "a budget below the widest expert is said" [ "$(cat stderr)" = "train_tiny: warning: --budget \
0.3 may be out of reach: the widest expert alone is 0.500000 of the width" ]
train --out null --steps 1 --sizes 0,9,11,13 >stdout 2>stderr
train --out no-null --steps 1 --experts 3 --sizes 9,11,13 --hidden 12 >said 2>stderr
check "a null expert has no parameters but the router's" [ \
    $(($(sed -n 's/.*: \([0-9]*\) parameters.*/\1/p' stdout) \
     - $(sed -n 's/.*: \([0-9]*\) parameters.*/\1/p' said))) -eq 32 ]
check "--balance turns the penalty off" grep -q '"pp_coef": 0,' straight/config.json
check "--budget turns the entropy loss off" grep -q '"ent_coef": 0,' cut/config.json
train --out topp --steps 0 --routing topp >stdout 2>stderr
check "and they are on without" grep -q '"pp_coef": 0.01,' topp/config.json
check "and they are on without" grep -q '"ent_coef": 3e-05,' topp/config.json

# --- runs of version 1.0 go on as they would have then --------------------------------------------
# nll after 20 steps, loss of the validation part after 60, nll then: printed by version 1.0.
old() { "$train_tiny" --data text $recipe --resume --out old "$@"; }
while read -r rule nll loss later; do
    rm -rf old; cp -r "$root/tests/files/version-1.0/$rule" old
    "$generate" old --score text >stdout 2>stderr
    check "1.0, $rule: scores" near "$nll" "$(sed 's/^nll \([0-9.]*\) .*/\1/' stdout)"
    old --steps 60 >stdout 2>stderr
    check "1.0, $rule: goes on" near "$loss" "$(sed -n 's/^final: val_loss \([0-9.]*\) .*/\1/p' stdout)"
    "$generate" old --score text >stdout 2>stderr
    check "1.0, $rule: and scores" near "$later" "$(sed 's/^nll \([0-9.]*\) .*/\1/' stdout)"
done <<'END'
topk 2.553993 1.916230 1.896063
topp 2.553303 1.910746 1.904137
END

# --- what goes wrong leaves what was there --------------------------------------------------------
state b >before
for rate in "--lr 1e30" "--muon-lr 1e30 --optimizer muon" "--weight-decay 1e30" \
    "--lr 1e35 --muon-lr 1e30 --optimizer muon" "--muon-lr 1e30 --lr 1e20 --optimizer muon"; do
    check "the rate at fault" gives 1 "step .*most likely $(echo "$rate" | cut -d ' ' -f 1) 1e+3" \
        train --out diverged --overwrite $rate --steps 20
done
check "a run of Muon" gives 1 "most likely --muon-lr 1e+30" train --resume --out m --steps 90 \
    --muon-lr 1e30
check "NaN" gives 1 "step .*--lr" anew --out b --lr 1e30 --min-lr 1e30 --steps 20
state b >after
check "NaN: not saved" same before after
check "a run is in the way" gives 1 "b: there is a run already, --resume .* --overwrite" \
    train --out b --steps 1
state b >after
check "and stays" same before after
check "both at once" gives 2 "--overwrite and --resume" train --out b --resume --overwrite
"$train_tiny" --data text $model $recipe $endless --width 8 --overwrite --out b >said 2>stderr &
running=$!
wait_for_rows b.new/log.csv 3
check "locked meanwhile" gives 1 "b is in use by process $running" train --resume --steps 50 --out b
kill -9 $running; wait $running 2>/dev/null; running=
state b >after
check "killed before its first save: the older run is whole" same before after
check "and goes on" gives 0 "^final: " train --resume --steps 35 --out b
check "and nothing of the other is left" absent b.new
cksum b/training.safetensors b/config.json >before
for limit in 8 64; do
    check "full disk, $limit blocks" gives 1 "" sh -c "ulimit -f $limit; exec \"\$@\"" sh \
        "$train_tiny" --data text $recipe --resume --steps 40 --out b
    cksum b/training.safetensors b/config.json >after
    check "full disk: the state is whole" same before after
    check "full disk: no half file" [ "$(find b -type f | wc -l)" -eq 12 ]
done
check "full disk: resumes" gives 0 "^final: " train --resume --steps 37 --out b
mkdir b/mine; echo kept >b/mine/file
mkdir b.old
check "an empty directory is not in the way" gives 0 "^final: " anew --width 8 --steps 2 --out b
mkdir b.old; echo mine >b.old/file
check "a directory of others is" gives 1 "b.old is in the way" anew --width 8 --steps 3 --out b
rm -r b.old
check "fresh over old" gives 0 "^final: " anew --width 8 --steps 3 --out b
check "what was beside it is kept" [ "$(cat b/mine/file)" = kept ]
rm -r b/mine
check "and nothing else" [ "$(find b b.* -type f 2>/dev/null | wc -l)" -eq 12 ]
ln -s b link
check "over a link" gives 0 "^final: " anew --width 8 --steps 3 --out link
check "which stays one" [ -L link ]
(cd b && "$train_tiny" --data ../text $model $recipe --width 8 --steps 3 --overwrite --out .) \
    >stdout 2>stderr
check "over the current directory" [ $? -eq 0 ]
check "where nothing else is left either" [ "$(find b b.* -type f 2>/dev/null | wc -l)" -eq 12 ]
mv b b.old; : >b.old/.overwrite.hmoe
train --resume --width 8 --steps 3 --out b >stdout 2>stderr
check "b.old without b is b again" grep -q "warning: the older run is in b again" stderr
check "and is whole" [ "$(find b b.* -type f 2>/dev/null | wc -l)" -eq 12 ]
check "new log" [ "$(wc -l <b/log.csv)" -eq 4 ]
check "new best" gives 2 "has 8" train --width 16 --resume --out b
check "best is the new model's" same b/config.json b/best/config.json
check "--out is a file" gives 1 "text" train --out text --steps 1
check "--out in nowhere" gives 0 "^final: " train --out no/where/yet --steps 1
rm -r no
check "--out in a file" gives 1 "text/where" train --out text/where --steps 1
check "a bad text" gives 1 "cannot read" train --out no/where/yet --data nothing
check "leaves no directory" absent no
if [ "$(id -u)" -ne 0 ]; then
    mkdir read-only; chmod a-w read-only
    check "read-only --out" gives 1 "read-only" train --out read-only --steps 1
fi
rm b/training.safetensors
check "no training state" gives 1 "training.safetensors" train --resume --out b
if [ -c /dev/full ]; then
    "$train_tiny" --data text $model $recipe --steps 3 --out f >/dev/full 2>stderr
    check "output to a full disk: status 1" [ $? -eq 1 ]
    check "but the run is saved" gives 0 "^final: " train --resume --steps 3 --out f
    "$generate" a -n 9 >/dev/full 2>stderr
    check "generate to a full disk: status 1" [ $? -eq 1 ]
fi

# --- --steps 0, other models ----------------------------------------------------------------------
check "--steps 0" gives 0 "^final: .* 0 tok/s" train --steps 0 --out zero
check "--steps 0: best" ls zero/best/model.safetensors >/dev/null
check "--steps 0: log" [ "$(wc -l <zero/log.csv)" -eq 1 ]
check "--steps 0 goes on" gives 0 "" train --resume --steps 4 --eval-every 2 --out zero
for options in "--routing topp" "--routing topp --p 1 --gate raw" "--k 1" "--k 4 --gate raw --noisy" \
    "--experts 1" "--sizes modse --lb 0.01 --pp 0" "--sizes 3,1,2,2 --z 0.001" "--batch 500" \
    "--accum 3" "--experts 12 --hidden 4" "--clip 0 --weight-decay 0" "--lr 0.0001 --min-lr 0"; do
    check "train $options" gives 0 "^final: " anew $options --steps 3 --out o
    check "resume $options" gives 0 "^final: " train $options --steps 5 --resume --out o
    check "generate, $options" gives 0 "" "$generate" o -n 20 --threads 1
done

# --- generate -------------------------------------------------------------------------------------
write() { "$generate" a --threads 1 "$@"; }
write -n 100 --temperature 0 >g1 2>stderr; write -n 100 --temperature 0 >g2 2>stderr
check "greedy twice" same g1 g2
check "100 bytes" [ "$(wc -c <g1)" -eq 100 ]
write -n 100 --top-k 1 >g2
check "top-k 1 is greedy" same g1 g2
write -n 100 --top-p 0.000001 >g2
check "a tiny top-p is greedy" same g1 g2
write -n 100 >g1; write -n 100 >g2; write -n 100 --seed 7 >g3
check "one seed, one text" same g1 g2
check "two seeds, two texts" [ "$(cksum <g1)" != "$(cksum <g3)" ]
check "-n 0" [ "$(write -n 0 --prompt "to be")" = "to be" ]
check "a prompt is shown" [ "$(write -n 3 --prompt "to be" 2>stderr | cut -c 1-5)" = "to be" ]
check "strange prompt" gives 1 "byte 90 (0x5a) at offset 3" write --prompt "to Z"
check "strange text" gives 1 "offset 3004" write --score text-Z
check "one byte to score" gives 1 "at least 2" write --score empty
check "no file to score" gives 1 "cannot read" write --score nothing
cp -r a wordless; sed '/"vocab"/d' a/config.json >wordless/config.json
write -n 50 >g1
"$generate" wordless -n 50 --threads 1 >g2 2>stderr
check "without vocab, tokenizer.json says it" same g1 g2
rm wordless/tokenizer.json
check "without both, it writes numbers" gives 0 "" "$generate" wordless -n 5 --threads 1
check "of its tokens" [ "$(tr ' ' '\n' <stdout | awk '/^[0-9]+$/ && $1 < 18' | wc -l)" -eq 5 ]
check "and reads no text" gives 1 "18 tokens are no bytes" "$generate" wordless --prompt to
"$train_tiny" --data bytes --steps 0 --width 8 --layers 1 --heads 1 --context 4 --out all-bytes >stdout 2>stderr
"$generate" all-bytes --score text --threads 1 >g1
sed -i.bak '/"vocab"/d' all-bytes/config.json; rm all-bytes/tokenizer.json
"$generate" all-bytes --score text --threads 1 >g2
check "256 tokens are bytes" same g1 g2
check "no model" gives 1 "none" "$generate" none
cp -r a ./-a
check "after -- a word is a word" gives 0 "" "$generate" -n 5 -- -a
tail -c 300 text >validation
check "--score" gives 0 "^nll [0-9.]* nats/token over 299 tokens$" write --score validation
nll=$(cut -d ' ' -f 2 stdout)
train --resume --steps 0 --out a >stdout
check "--score is train_tiny's final loss" near "$nll" \
    "$(sed -n 's/^final: val_loss \([0-9.]*\).*/\1/p' stdout)"

sed 's/"optimizer":"0"/"optimizer":"7"/' a/training.safetensors >odd; cp -r a odd-run
mv odd odd-run/training.safetensors
for optimizer in "" "--optimizer adamw"; do
    check "a run of an unknown optimizer $optimizer" gives 1 "odd-run: this program lacks" \
        train --resume --steps 40 --out odd-run $optimizer
done
cp -r a pipes; cp text kept; echo mine >pipes/config.json.tmp
mkfifo pipes/.config.json.hmoe.tmp; ln -s ../text pipes/.model.safetensors.hmoe.tmp
check "a pipe and a link beside a file" gives 0 "^final: " train --resume --steps 40 --out pipes
check "the link's file is as before" same text kept
check "and the run's is a file" [ ! -L pipes/model.safetensors ]
check "a file of one's own beside it stays" [ "$(cat pipes/config.json.tmp)" = mine ]
check "and what was in the way is gone" [ "$(find pipes -name '*.hmoe.tmp')" = "" ]
for name in config.json model.safetensors; do
    cp -r a pipe; rm pipe/$name; mkfifo pipe/$name
    check "a pipe for $name" gives 1 "cannot open pipe/$name: Invalid argument" "$generate" pipe
    rm -r pipe
done

# --- what the router did: --routes, --page, --devices ----------------------------------------------
look() { write --score validation "$@"; }
check "--routes" gives 0 "^nll $nll nats/token over 299 tokens$" look --routes r.csv --devices 2
sed -n 's/.*, \([0-9]*\) tokens, .*/\1/p' stdout >by_device
check "routes: columns" [ "$(head -n 1 r.csv)" = \
    "position,byte,nll,entropy,layer,experts,widths,gates,P" ]
check "routes: a row per token and layer" [ "$(wc -l <r.csv)" -eq $((1 + 299 * 2)) ]
check "routes: the losses" near "$nll" \
    "$(awk -F , 'NR > 1 && $5 == 0 { x += $3; n++ } END { printf "%.9f", x / n }' r.csv)"
check "routes: entropy is what the losses are on average where the model is right, within chance" \
    awk -F , 'NR > 1 && $5 == 0 { x += $3; y += $4; n++; bad += $4 < 0 || $4 > log(18) }
        END { exit bad > 0 || (x - y) / n > 0.3 || (y - x) / n > 0.3 }' r.csv
train --out untrained --steps 0 >stdout 2>stderr
"$generate" untrained --score text --routes u.csv >stdout 2>stderr
check "routes: an untrained model guesses evenly, entropy ln V" \
    awk -F , 'NR > 1 { d = $4 - log(18); bad += d > 0 || d < -0.02 } END { exit NR < 2 || bad > 0 }' u.csv
rm -f u.csv
check "routes: the bytes" [ "$(awk -F , 'NR > 1 && $5 == 1 { printf "%c", $2 }' r.csv | cksum)" = \
    "$(head -c 299 validation | cksum)" ]
widths=$(sed -n 's/.*"expert_sizes": \[\(.*\)\].*/\1/p' a/config.json | tr -d ,)
check "routes: shares" awk -F , -v widths="$widths" 'function off(x) { return x * x > 1e-10 }
    BEGIN { split(widths, H, " ") }
    NR > 1 { n = split($6, e, " "); split($7, w, " "); split($8, g, " "); m = split($9, P, " ")
        sum = all = chosen = 0
        for (i = 1; i <= m; i++) all += P[i]
        for (i = 1; i <= n; i++) { chosen += P[e[i] + 1]; sum += g[i]; bad += w[i] != H[e[i] + 1] }
        for (i = 1; i <= n; i++) bad += off(g[i] - P[e[i] + 1] / chosen)
        for (i = 1; i <= m; i++) larger += P[i] > P[e[n] + 1]
        bad += larger > 1; larger = 0
        bad += n != 2 || m != 4 || off(sum - 1) || off(all - 1) }
    END { exit bad > 0 }' r.csv
awk -F , 'NR > 1 { n = split($6, e, " "); for (i = 1; i <= n; i++) t[e[i] == 0 || e[i] == 3]++
    for (i = 1; i <= n; i++) s[e[i] >= 2]++ } END { print t[1] "\n" t[0] "\n" s[0] "\n" s[1] }' r.csv >counted
check "--devices: tokens as the routes have them, in pairs and side by side" same by_device counted
check "--devices: pairs do not fit" gives 0 "^in pairs: 4 experts on 4 devices" look --devices 4
check "--page" gives 0 "^nll" look --page p.html
check "the page has no text in it" [ "$(grep -c "$(head -c 9 validation)" p.html)" -eq 0 ]
for option in "--routes no/r.csv" "--page no/p.html"; do
    check "$option" gives 1 "no/" look $option
done
for option in "--routes r" "--page p" "--devices 2" --show-tiles; do
    check "$option needs a text" gives 2 "needs --score" "$generate" a $option
done
ln validation the-same
for option in "--routes the-same" "--page validation"; do
    check "$option: not over the text" gives 2 "is the file of --score" look $option
done
check "one file for both" gives 2 "both are x" look --routes x --page x
cp r.csv before
check "a failed run keeps the older file" gives 1 "byte 90" write --score text-Z --routes r.csv
check "it is the same" same before r.csv
(ulimit -f 8; look --routes r.csv >stdout 2>stderr)
check "full disk: the file is the same" same before r.csv
check "full disk: says so" grep -q "cannot write r.csv: " stderr
check "nothing is left beside it" [ "$(echo r.csv*)" = r.csv ]

# --- the export -----------------------------------------------------------------------------------
export_to() { "$generate" a --threads 1 --export-mixtral "$@"; }
state a >before
check "export" gives 0 "^mixtral: a Mixtral of [0-9]* parameters.* [0-9]*, [0-9.]* MB$" \
    export_to mixtral
state a >after
check "export: the model has not changed" same before after
check "export: its files" [ "$(cd mixtral && echo *)" = \
    "config.json model.safetensors tokenizer.json tokenizer_config.json" ]
check "export: Mixtral's name" grep -q MixtralForCausalLM mixtral/config.json
check "ours is another" grep -q HMoEForCausalLM a/config.json
check "export: one width" grep -q '"expert_sizes": \[\([0-9]*\), \1, \1, \1\]' mixtral/config.json
write --score validation >score1
check "export: scores the same" gives 0 "^$(cat score1)$" "$generate" mixtral --score validation
write -n 30 --seed 3 >g1
"$generate" mixtral -n 30 --seed 3 >g2
check "export: writes the same" same g1 g2
check "export again, over it" gives 0 "^mixtral: " export_to mixtral
check "export of an export" gives 0 "^twice: " "$generate" mixtral --export-mixtral twice
check "export of an export: the same" same mixtral/model.safetensors twice/model.safetensors
state mixtral >before
ln -s mixtral linked
for itself in mixtral ./mixtral/ linked "$PWD/mixtral"; do
    check "export to $itself, itself" gives 1 "holds this model" \
        "$generate" mixtral --export-mixtral "$itself"
done
state mixtral >after
check "and nothing has changed" same before after
state binary-run >before
check "export over a run" gives 1 "binary-run holds a run" export_to binary-run
state binary-run >after
check "the run is whole" same before after
mkfifo pipe-run; mkdir piped; mv pipe-run piped/training.safetensors
check "export over a pipe" gives 1 "piped holds a run" export_to piped
check "export to a file" gives 1 "text" export_to text
check "export to nowhere" gives 0 "^no/where: " export_to no/where
rm -r no
check "export to no name" gives 1 "" export_to ""
for options in "--routing topp=Top-P" "--gate raw=raw gates" "--k 1=raw gates"; do
    check "train ${options%=*}" gives 0 "^final: " anew ${options%=*} --steps 1 --out o
    check "no export of ${options%=*}" gives 1 "${options#*=}" "$generate" o --export-mixtral never
    check "no export of ${options%=*}: no directory" absent never
done
cp -r a half; head -c 2000 a/model.safetensors >half/model.safetensors
check "no export of half a model" gives 1 "half/model.safetensors" "$generate" half \
    --export-mixtral never
check "nor of none" gives 1 "none" "$generate" none --export-mixtral never
check "no directory made by these" absent never

# --- the pages ------------------------------------------------------------------------------------
readme=$root/README.md
for option in $(cat "$readme" "$root"/docs/*.md "$root"/extra/*/README.md |
    grep -o -e '--[a-z][a-z-]*' | sort -u); do
    grep -q "CLI_[A-Z]*(\"$option\"" "$root/extra/parallel/cli_peers.h" && continue   # of make mpi
    check "pages: $option is an option" sh -c '{ "$1" --help; "$2" --help; } | grep -q -e "^  $3 "' \
        sh "$train_tiny" "$generate" "$option"
done
"$train_tiny" --data text --steps 0 --out readme --threads 1 >said 2>stderr
check "README: the default widths" grep -qF "$(grep '^experts  ' said)" "$readme"

echo "programs: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
