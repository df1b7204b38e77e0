#!/bin/sh
# runs.sh - runs keep their word: --resume needs no other option, a changed text is not trained on
# silently, a run can begin with the weights of another model, can learn from files of tokens, and
# what it prints is true.
# shellcheck source=tests/harness.sh
# shellcheck disable=SC2209,SC1010,SC3045  # out=cut and out=done name runs; ulimit -v: where it is
. "$(dirname "$0")/../harness.sh"
cd "$here" || exit 1
train_tiny=${BIN}train_tiny generate=${BIN}generate
evidence="stdout stderr"

say_text >text
tr 'to' 'ot' <text >other
sed 's/be/is/; s/that/mind/' text >similar
model="--width 16 --layers 2 --heads 2 --context 8 --experts 4 --hidden 9"
recipe="--batch 2 --lr 0.01 --min-lr 0.001 --warmup 3 --eval-tokens 200 --eval-every 5"
# shellcheck disable=SC2086  # several words
train() { rm -rf "$out"; "$train_tiny" --data text --threads 1 $model $recipe --out "$out" "$@"; }
resume() { "$train_tiny" --resume --threads 1 --out "$out" "$@"; }
score() { "$generate" "$1" --threads 1 --score "${2:-text}" | sed 's/^nll \([0-9.]*\) .*/\1/'; }
rows() { tail -n +2 "$1" | cut -d , -f 1-2,4-; }                    # of a log, without its seconds
ends() { tail -n 1 "$1/log.csv" | cut -d , -f "$2"; }               # a column of the last row
sample() { sed -n '/^step 12: /,$p' stdout | grep '^  | '; }
warns() {         # warns PATTERN COMMAND...: it ends well, with one warning
    pattern=$1; shift
    "$@" >stdout 2>stderr && [ "$(grep -c warning stderr)" = 1 ] && grep -q "warning: .*$pattern" stderr
}

# --- --resume needs no other option ---------------------------------------------------------------
out=whole
check "a run" gives 0 "^final: " train --steps 20
for how in "" "--accum 2" "--dropout 0.3" "--optimizer muon --muon-lr 0.01" "--beta1 0.8 --beta2 0.9" \
    "--clip 0.01 --weight-decay 1" "--routing topp --p 0.7 --ent 0.001 --z 0.01" "--noisy --lb 0.02" \
    "--balance work --balance-rate 0.02" "--save-every 3 --eval-every 4"; do
    out=whole; check "whole $how" gives 0 "^final: " train --steps 12 $how
    sample >whole-sample
    out=cut; check "cut $how" gives 0 "^stopped after step 7; to go on: " train --steps 12 --stop-at 7 $how
    check "resumed without an option $how" gives 0 "^final: .* over 299 tokens" resume
    check "the same weights $how" cmp whole/model.safetensors cut/model.safetensors
    check "the same best $how" cmp whole/best/model.safetensors cut/best/model.safetensors
    rows whole/log.csv >whole-rows; rows cut/log.csv >cut-rows
    check "the same log $how" cmp whole-rows cut-rows
    sample >cut-sample
    check "the same text at the end $how" cmp whole-sample cut-sample
done
out=whole; train --steps 20 >said 2>stderr
out=cut
"$train_tiny" --data text --threads 1 $model $recipe --steps 20 --stop-at 6 --out cut --overwrite >said 2>stderr
command=$(sed -n 's/^.*this continues it: //p' said)
mkdir elsewhere
check "from another directory" gives 0 "^final: " sh -c "cd elsewhere; $command/../cut --threads 1 --out ../cut"
check "which finds the text" cmp whole/model.safetensors cut/model.safetensors
mkdir "odd \\n dir"; cp text "odd \\n dir/it's
two lines"
out=odd
check "a name with every kind of character" gives 0 "^stopped" \
    train --steps 20 --stop-at 6 --data "odd \\n dir/it's
two lines"
check "it is found again" gives 0 "^final: " resume
check "and is the same text" cmp whole/model.safetensors odd/model.safetensors

out=zero; train --steps 0 >said 2>stderr
check "--steps 0, then the rest" gives 0 "^changed  steps 0 -> 20, as given now$" resume --steps 20
check "no rate is said to change" not grep -q "learning rate" stdout
"$train_tiny" --data text --threads 1 $model --batch 2 --lr 0.01 --steps 0 --out zero2 >said 2>stderr
"$train_tiny" --resume --threads 1 --steps 20 --out zero2 >said 2>stderr
"$train_tiny" --data text --threads 1 $model --batch 2 --lr 0.01 --steps 20 --out straight >said 2>stderr
check "the weights are those of a run in one part" cmp straight/model.safetensors zero2/model.safetensors

# --- what is given now counts, and is said ---------------------------------------------------------
out=cut
train --steps 2000 --stop-at 20 >said 2>stderr
check "another rate" gives 0 "^changed  lr 0.01 -> 0.002, as given now$" resume --lr 0.002 --stop-at 21
check "and what it does" grep -q "^changed  learning rate 0.00999839[0-9]* -> 0.00199979[0-9]* at the next step$" stdout
check "it is in the log" near "$(ends cut 4)" 0.00199979 1e-6
check "it stays" gives 0 "^stopped after step 22" resume --stop-at 22
check "without a word" not grep -q "^changed" stdout
check "it is there" near "$(ends cut 4)" 0.00199978 1e-6
check "a word, a whole number and a coefficient" gives 0 "^changed  batch 2 -> 1, as given now$" \
    resume --stop-at 23 --batch 1 --pp 0.3 --k 1 --min-lr 0.001
check "k" grep -q "^changed  k 2 -> 1, as given now$" stdout
check "pp" grep -q "^changed  pp 0.01 -> 0.3, as given now$" stdout
check "what is the same is not said" not grep -q "min-lr" stdout
check "one expert a token" [ "$(ends cut 13)" = 1.000000 ]
check "both are in config.json" [ "$(grep -c -e '"num_experts_per_tok": 1,' -e '"pp_coef": 0.3,' cut/config.json)" = 2 ]
check "tokens" [ "$(ends cut 2)" = $((22 * 16 + 8)) ]
out=done; train --steps 10 >said 2>stderr
check "a finished run that is extended says so" gives 0 \
    "^changed  learning rate 0.001 -> 0.00[3-9][0-9]* at the next step$" resume --steps 20
check "steps" grep -q "^changed  steps 10 -> 20, as given now$" stdout

# --- the text ---------------------------------------------------------------------------------------
out=cut; train --steps 20 --stop-at 6 >said 2>stderr
cksum cut/* 2>&1 | grep -v log.csv >before
cp text kept; printf 'to be' >>text
check "a text that has grown" gives 1 "text has changed since the run was saved: its size was 3000 and is 3005" resume
cp kept text; printf 'e' | dd of=text bs=1 seek=1500 conv=notrunc 2>stderr
check "a text with another byte" gives 1 "text has changed" resume
rm text
check "a text that is gone" gives 1 "cannot read $here/text" resume
cksum cut/* 2>&1 | grep -v log.csv >after
check "nothing has changed" cmp before after
cp kept text
tr 'a' '#' <kept >text
check "a text with a new byte: that it has changed" gives 1 "text has changed" resume
head -c 20 kept >text
check "a text that is too short now: that it has changed" gives 1 "text has changed" resume
cp kept text
check "another one" gives 0 "^changed  data $here/text -> other, as given now$" resume --data similar --stop-at 7 --data other
check "it is another" grep -q "^changed  the text: other has other contents" stdout
check "and stays" gives 0 "^text     .*/other: 2700 tokens" resume --stop-at 8
out=cut; train --steps 20 --stop-at 6 >said 2>stderr
cp similar text
check "the changed text, by name" gives 0 "^changed  the text: text has other contents" resume --data text --stop-at 7
cp kept text

# --- best/ is of this text and these windows --------------------------------------------------------
best() { sed -n 's/.*"best_val_loss":"\([0-9.e+]*\)".*/\1/p' cut/training.safetensors | head -n 1; }
tr -dc ' \n' <text | head -c 400 >blanks; cat text >>blanks         # its end is as hard, its begin easy
for change in "--data similar" "--eval-tokens 40" "--data other2"; do
    cp similar other2; head -c 2000 text >>other2
    out=cut; train --steps 2000 --stop-at 40 >said 2>stderr
    # shellcheck disable=SC2086
    check "best anew: $change" gives 0 "^changed  best/ starts anew" resume $change --lr 0.0001 --min-lr 0 --stop-at 45
    check "its first is the lowest: $change" grep -q "^step 45: .* lowest yet" stdout
    check "best/ is the present model: $change" cmp cut/model.safetensors cut/best/model.safetensors
    check "and not anew again: $change" gives 0 "^stopped" resume --stop-at 46
    check "not said again: $change" not grep -q "starts anew" stdout
done
out=cut; train --steps 2000 --stop-at 6 >said 2>stderr
check "as many windows are the same windows" gives 0 "^stopped" resume --eval-tokens 201 --stop-at 7
check "so best goes on" not grep -q "starts anew" stdout

# --- recipe.txt ------------------------------------------------------------------------------------
out=cut; train --steps 20 --stop-at 6 >said 2>stderr
cp cut/recipe.txt recipe
for edit in "lr" "lr_0.1" "lr nan" "lr 0,1" "lr 1 " "width 16" "out other" "text-hash 12" "text-size x" \
    "resume " "--lr 1" "backend gpu"; do
    sed "s/^lr .*/$edit/" recipe >cut/recipe.txt
    check "recipe.txt, $edit" gives 1 "cut/recipe.txt, line 13: \"$edit\": no such option, or a wrong value" resume
done
{ cat recipe; printf 'lr x'; } >cut/recipe.txt
check "recipe.txt, a last line without its end" gives 1 "cut/recipe.txt, line [0-9]*: \"lr x\"" resume
for n in 0 30 300; do
    head -c $n recipe >cut/recipe.txt
    check "recipe.txt, its first $n bytes" gives 1 "cut/recipe.txt is damaged or not complete" resume --data text
done
{ head -c 200 recipe; printf '\000\000'; tail -c +203 recipe; } >cut/recipe.txt
check "recipe.txt, bytes of 0" gives 1 "cut/recipe.txt is damaged or not complete" resume
sed 's/^data .*/&\\/' recipe >cut/recipe.txt
check "recipe.txt, a backslash at a line's end" gives 1 "cannot read .*text" resume
sed '/^clip/d' recipe >cut/recipe.txt
check "a line less: the default, and a line says so" gives 0 "^changed  recipe.txt has no clip: it is 1$" resume --stop-at 7
rm cut/recipe.txt
check "none, as in older versions" warns "cut has no recipe.txt: options that are not given now have their defaults" \
    resume --data text --steps 20 --stop-at 8
check "then there is one" gives 0 "^final: " resume

# --- settings with which something does not learn ---------------------------------------------------
out=warned
check "one expert with a normalised gate" warns "nothing trains 2 .*layers.0.block_sparse_moe.gate.weight" \
    train --steps 2 --k 1 --gate norm --pp 0
check "the same under Top-P" warns "nothing trains 2 .*layers.0.block_sparse_moe.gate.weight" \
    train --steps 3 --routing topp --p 0.0001 --ent 0 --pp 0 --eval-every 100 --stop-at 2
check "attention to one token" warns "nothing trains 4 .*layers.0.self_attn.q_proj.weight" \
    train --steps 2 --context 1
tr -dc o <text | head -c 300 >same-letter
check "a text of one letter" warns "nothing trains .*self_attn.q_proj" train --steps 2 --data same-letter
for fine in "" "--k 1 --gate norm" "--k 1 --pp 0" "--experts 1" "--k 4 --pp 0" "--noisy --pp 0" \
    "--sizes 0,1,1,1" "--balance work" "--routing topp"; do
    # shellcheck disable=SC2086
    check "fine: $fine" gives 0 "^final: " train --steps 2 $fine
done

# --- a run that begins with the weights of another model --------------------------------------------
rm -rf het mixtral dense half
out=het; train --steps 30 >said 2>stderr
out=dense; train --steps 30 --experts 1 --hidden 12 >said 2>stderr
"$generate" het --export-mixtral mixtral >said 2>stderr
begin() { rm -rf begun; "$train_tiny" --threads 1 --data text --out begun --init "$@"; }
check "--init" gives 0 "^final: " begin het --steps 0
check "the same weights" cmp het/model.safetensors begun/model.safetensors
check "--init best/, and training goes on from there" gives 0 "^final: " begin het/best --steps 40 --lr 0.003 --lb 0.1
check "it is better than a new one" \
    awk "BEGIN { exit !($(sed -n 2p begun/log.csv | cut -d , -f 6) < $(sed -n 20p het/log.csv | cut -d , -f 6)) }"
check "its losses are its own" grep -q '"lb_coef": 0.1,' begun/config.json
check "its context can be another" gives 0 "context 4:" begin het --context 4 --steps 1
check "an export" gives 0 "widths 13 13 13 13" begin mixtral --steps 0
check "--slim undoes its padding" gives 0 "widths 5 8 10 13" begin mixtral --slim arithmetic --hidden 9 --steps 0
check "to the digit" [ "$(score begun)" = "$(score het)" ]
check "and the byte" cmp begun/model.safetensors het/model.safetensors
check "--slim by itself keeps the widest" gives 0 "widths [0-9 ]* 13$" begin mixtral --slim arithmetic --steps 0
check "which has the same loss" [ "$(score begun)" = "$(score het)" ]
check "--slim that cuts" gives 0 "widths 3 3 3 3" begin mixtral --slim homogeneous --hidden 3 --steps 0
check "--upcycle: widths" gives 0 "widths 12 12 12" begin dense --upcycle 3 --steps 0
check "--upcycle: the loss is the dense model's" [ "$(score begun)" = "$(score dense)" ]
check "--upcycle: a router that waits for its experts to differ is no fault" gives 0 "^final: " \
    begin dense --upcycle 3 --pp 0 --steps 3
check "--upcycle with all else" gives 0 "^final: " begin dense --upcycle 6 --sizes geometric --routing topp \
    --noisy --balance tokens --steps 3
check "--upcycle trains" gives 0 "^final: " begin dense --upcycle 4 --k 2 --steps 30
check "and learns" awk "BEGIN { exit !($(score begun) < $(score dense)) }"
check "it can be resumed" gives 0 "^final: " "$train_tiny" --resume --out begun --threads 1 --steps 31
grep -v '"vocab"' mixtral/config.json >config; cp config mixtral/config.json
check "a Mixtral that does not list its bytes" gives 0 "^final: " begin mixtral --steps 0
check "its tokenizer does" [ "$(score begun)" = "$(score het)" ]
while read -r status pattern options; do
    # shellcheck disable=SC2086
    check "--init $options" gives "$status" "$(echo "$pattern" | tr _ ' ')" begin $options --steps 1
    check "nothing is made by --init $options" [ ! -e begun ]
done <<'END'
1 cannot_open_none/config.json none
1 cannot_open_half/config.json half
2 --width_32:_the_model_in_het_has_16 het --width 32
2 --sizes_modse:_the_model_in_het_has_4_experts het --sizes modse
2 --hidden_30:_the_model_in_het_has_9 het --hidden 30
2 --routing_topp:_the_model_in_het_has_topk het --routing topp
2 --slim_twisted het --slim twisted
2 expert_1_would_have_width_18_with_--hidden_21,_but_has_only_13 mixtral --slim arithmetic --hidden 21
2 give_the_rule_by_--sizes dense --upcycle 2 --slim modse
1 is_not_dense,_it_has_4_experts het --upcycle 2
2 would_have_width_13_with_--hidden_13,_but_has_only_12 dense --upcycle 2 --hidden 13
2 --upcycle_2_says_how_many dense --upcycle 2 --experts 2
2 --init_and_--resume dense --resume
END
check "--slim needs --init" gives 2 "needs --init" "$train_tiny" --data text --out u --slim modse
printf 'not Z\n' | cat text - >text-Z
check "--init: a byte that it does not know" gives 1 "byte 90 .*offset 3004" begin het --data text-Z

# --- tokens ---------------------------------------------------------------------------------------
# The text's bytes as their numbers in the vocabulary: the run must be the same to the bit.
octal16() { awk '{ printf "\\%03o\\%03o", $1 % 256, int($1 / 256) }'; }
octal32() { awk '{ printf "\\%03o\\%03o\\%03o\\%03o", $1 % 256, int($1 / 256) % 256, int($1 / 65536) % 256, int($1 / 16777216) }'; }
od -An -v -tu1 text | tr -s ' ' '\n' | grep . >codes
sort -n -u codes | awk '{ print $1, NR - 1 }' >numbers
awk 'NR == FNR { n[$1] = $2; next } { print n[$1] }' numbers codes >ids
printf "$(octal16 <ids)" >ids.bin
head -n 2700 ids >ids-train; tail -n 300 ids >ids-val
printf "$(octal16 <ids-train)" >train.bin; printf "$(octal16 <ids-val)" >val.bin
header() { { echo "$1"; echo "$2"; echo "$3"; yes 0 | head -n 253; } | octal32; }
{ printf "$(header 20240520 1 3000)"; cat ids.bin; } >gpt2.bin
{ printf "$(header 20240801 7 3000)"; printf "$(octal32 <ids)"; } >llama3.bin
out=bytes; check "bytes" gives 0 "^final: " train --steps 10
learn() { rm -rf tokens; "$train_tiny" --threads 1 $model $recipe --out tokens --steps 10 "$@"; }
for files in "ids.bin" "train.bin --tokens-val val.bin" "gpt2.bin" "llama3.bin"; do
    # shellcheck disable=SC2086
    check "--tokens $files" gives 0 "^final: .* over 299 tokens" learn --tokens $files
    check "the weights are those of the text, $files" cmp bytes/model.safetensors tokens/model.safetensors
done
check "a model without bytes scores tokens" [ "$(score tokens ids.bin)" = "$(score bytes)" ]
"$generate" tokens --threads 1 --score ids.bin --routes routes.csv >stdout 2>stderr
check "and shows their routes" [ "$(sed -n 2p routes.csv | cut -d , -f 2)" = "$(head -n 1 ids)" ]
"$generate" tokens --threads 1 --tokens "1 2 3" -n 30 >numbers-out
"$generate" bytes --threads 1 --tokens "1 2 3" -n 30 >numbers-of-bytes
check "--tokens: numbers" [ "$(tr -s ' ' '\n' <numbers-out | grep -c .)" = 33 ]
check "they begin with those given" [ "$(cut -d ' ' -f 1-3 numbers-out)" = "1 2 3" ]
check "the same model, the same numbers" cmp numbers-out numbers-of-bytes
check "without a tokenizer it writes numbers" [ "$("$generate" tokens --threads 1 -n 3 | wc -w)" = 3 ]
for bad in "1 x" "-1" "1 2 18" "1,,x" "99999999999999999999"; do
    check "--tokens $bad" gives 2 "--tokens $bad: needs numbers from 0 to 17" "$generate" tokens --tokens "$bad"
done
check "no text for it" gives 1 "18 tokens are no bytes" "$generate" tokens --prompt to
check "a tokenizer" gives 0 "^val_loss [0-9.]* nats/byte" learn --tokens ids.bin --tokenizer bytes/tokenizer.json
check "one byte is one token here" [ "$(sed -n 's/^val_loss \([0-9.]*\) .*/\1/p' stdout)" = \
    "$(sed -n 's/^final: val_loss \([0-9.]*\) .*/\1/p' stdout)" ]
check "it is in the checkpoint" cmp bytes/tokenizer.json tokens/tokenizer.json
check "and in best/" cmp bytes/tokenizer.json tokens/best/tokenizer.json
check "and makes text" [ "$("$generate" tokens --threads 1 -n 40)" = "$("$generate" bytes --threads 1 -n 40)" ]
out=tokens
check "resumed without an option" gives 0 "^final: " resume --steps 12
check "with its tokenizer" cmp bytes/tokenizer.json tokens/tokenizer.json
check "a byte per token is said" grep -q "^val_loss" stdout
# A tokenizer of pieces: "th" is token 3, <|end|> has no bytes, \u0120 is a blank.
printf '{"model": {"type": "BPE", "vocab": {"e": 1, "<|end|>": 2, "th": 3, "\\u0120": 0, "Ċ": 4, "\\"": 5}},
    "added_tokens": [{"id": 2, "content": "<|end|>", "special": true}]}' >pieces.json
yes '3 1 0 3 1 2 4' | head -n 300 | tr ' ' '\n' >piece-ids
printf "$(octal16 <piece-ids)" >pieces.bin
check "pieces" gives 0 "^final: .* over 209 tokens" learn --tokens pieces.bin --tokenizer pieces.json --steps 150
a_token=$(sed -n 's/^final: val_loss \([0-9.]*\) .*/\1/p' stdout)
check "V is the tokenizer's" grep -q '"vocab_size": 6,' tokens/config.json
bytes=$(tail -n 209 piece-ids | awk '{ x += $1 == 2 ? 0 : $1 == 3 ? 2 : 1 } END { print x }')
check "bytes of the tokens predicted" near \
    "$(sed -n 's/^val_loss \([0-9.]*\) .*/\1/p' stdout)" "$a_token * 209 / $bytes" 2e-6
"$generate" tokens --threads 1 --temperature 0 -n 30 | tr '\n' '/' >written
check "they are written" grep -q "/the the/the the/" written
dd if=ids.bin of=large.bin bs=1M seek=199 2>stderr                       # with a hole before it
dd if=ids.bin of=large.bin conv=notrunc 2>stderr
if [ -s large.bin ] && case $BIN in *sanitized*) false ;; esac; then
    # shellcheck disable=SC2086
    (ulimit -v 180000; exec "$train_tiny" --threads 1 $model $recipe --final-tokens 100 \
        --tokens large.bin --steps 2 --out large) >stdout 2>stderr
    check "a file larger than the memory" grep -q "^final: .* over 96 tokens" stdout
    check "all of it" grep -q "^text     large.bin: 939[0-9]* tokens to learn from" stdout
fi
rm -f large.bin
printf '\000' | cat ids.bin - >odd.bin; : >empty.bin
{ printf "$(header 20240520 1 2999)"; cat ids.bin; } >short.bin
while read -r status pattern options; do
    # shellcheck disable=SC2086
    check "$options" gives "$status" "$(echo "$pattern" | tr _ ' ')" learn $options
done <<'END'
1 cannot_open_none.bin --tokens none.bin
1 odd.bin_is_no_file_of_tokens --tokens odd.bin
1 short.bin_is_no_file_of_tokens --tokens short.bin
1 empty.bin_has_0_tokens --tokens empty.bin
1 empty.bin:_needs_at_least_2 --tokens ids.bin --tokens-val empty.bin
1 largest_token_is_17,_but_the_tokenizer_has_only_6 --tokens ids.bin --tokenizer pieces.json
1 cannot_open_none.json --tokens ids.bin --tokenizer none.json
1 text:_this_is_not_one_JSON_object --tokens ids.bin --tokenizer text
1 has_no_object_"vocab" --tokens ids.bin --tokenizer bytes/config.json
2 --tokens_and_--data --tokens ids.bin --data text
2 needs_--tokens --tokens-val val.bin
2 needs_--tokens --tokenizer pieces.json
END
out=tokens; learn --tokens ids.bin --steps 4 --stop-at 2 >stdout 2>stderr
check "tokens cannot become bytes" gives 1 "18 tokens are no bytes" resume --data text
check "an option that is given now and was not before is said" gives 0 "^changed  final-tokens all -> 16, as given now$" \
    resume --final-tokens 16 --stop-at 3
printf "$(octal16 <ids-val)" >>ids.bin
check "tokens that changed" gives 1 "ids.bin has changed" resume

printf '{"model": {"vocab": {"e": 1, "th": 3, "x": 4, "\342\226\201": 0}}}' >pieces.json
check "a tokenizer of another kind is said" warns "pieces.json is no byte-level tokenizer" \
    learn --tokens pieces.bin --tokenizer pieces.json --steps 1
printf '{"model": {"vocab": {"e": 1, "th": 3, "a": 7}}}' >pieces.json
check "tokens that a tokenizer lacks are said" warns "pieces.bin has tokens that the tokenizer lacks" \
    learn --tokens pieces.bin --tokenizer pieces.json --steps 1
check "and no loss per byte is shown" not grep -q "nats/byte" stdout
{ printf "$(header 20240801 7 2)"; printf '\001\000\000\000\377\377\377\177'; } >huge.bin
check "a token of 2^31 - 1" gives 1 "huge.bin: token 1 is 2147483647: it must be below 1048576" learn --tokens huge.bin

# --- prompts, and the size of the last evaluation ---------------------------------------------------
printf 'to be' >start
write() { "$generate" bytes --threads 1 -n 20 "$@"; }
write --prompt "to be" >g1
write --prompt-file start >g2; check "--prompt-file" cmp g1 g2
write --prompt - <start >g2; check "--prompt -" cmp g1 g2
printf 'to be' | write --prompt=- >g2; check "--prompt - from a pipe" cmp g1 g2
check "--prompt-file without a file" gives 1 "cannot read none" write --prompt-file none
check "an empty prompt is none" [ "$(write --prompt "")" = "$(write)" ]
check "a prompt and a score" gives 2 "--score: cannot go with --prompt" write --prompt a --score text
check "two of them" gives 2 "give only one" write --prompt a --prompt-file start
out=bytes
check "--final-tokens" gives 0 "^final: .* over 16 tokens" resume --final-tokens 20
check "--final-tokens beyond the text" gives 0 "^final: .* over 299 tokens" resume --final-tokens 9999

# --- what a run prints ------------------------------------------------------------------------------
sum() {           # sum OPTIONS...: the means over the micro-batches of a step: ce, ent and z
    out=sum; train --steps 1 --ent 0.01 --z 0.01 "$@" >stdout 2>stderr; tail -n 1 sum/log.csv | cut -d , -f 6,9,10
}
one=$(sum --batch 4) two=$(sum --batch 2 --accum 2)
check "micro-batches have sequences of their own: ce" near "${one%%,*}" "${two%%,*}" 2e-6
one=${one#*,} two=${two#*,}
check "an untrained router's entropy is nearly ln 4, in 2 layers, times 4 experts" near \
    "${one%,*}" "2 * 4 * log(4)" 0.05
check "its logits are nearly 0, so z is (ln 4)^2 in each" near "${one#*,}" "2 * log(4) ^ 2" 0.05
check "micro-batches: ent" near "${one%,*}" "${two%,*}" 2e-6
check "micro-batches: z" near "${one#*,}" "${two#*,}" 2e-6
out=left; train --steps 3000000 --stop-at 40 >stdout 2>stderr
resume --stop-at 80 >stdout 2>stderr
check "the time left after --resume is that of this start" awk '/ tok.s .* left/ {
    for (i = 1; i <= NF; i++) if ($i == "tok/s") { split($(i + 1), t, ":"); speed = $(i - 1) }
    left = 60 * t[1] + t[2]; should = (3000000 - 80) * 16 / speed
    bad = left > should * 1.02 + 1 || left < should * 0.98 - 1.5; seen = 1 } END { exit bad || !seen }' stdout
long() { awk "BEGIN { for (i = 0; i < $1 / 4; i++) printf \"d/./\" }"; }
check "--out of 960 bytes" gives 1 "cannot" "$train_tiny" --data none --out "/none/$(long 952)/x"
check "--out of 961 bytes" gives 2 "longer than 960 bytes" "$train_tiny" --data none --out "/none/$(long 952)/xy"

# --- what a run says of itself -----------------------------------------------------------------------
"$train_tiny" --data text --threads 1 $model --batch 2 --lr 0.01 --steps 30 --out third >stdout 2>stderr
check "warm-up: a third of the steps" [ "$(cut -d , -f 1,4 third/log.csv | sed -n '6p;11p' | tr '\n' ' ')" = \
    "5,0.005000000 10,0.010000000 " ]
out=muon; train --optimizer muon --warmup 1000000 --steps 3000000 --stop-at 1 --eval-every 1 >stdout 2>stderr
at_first=$(out=zero; train --steps 0 | sed -n 's/^step 0: validation loss \([0-9.]*\).*/\1/p')
check "Muon warms up, too" near "$(ends muon 14)" "$at_first" 1e-4
# A run of which the file says 9000 s and 5 TFLOP until now.
out=long; train --steps 30 --stop-at 20 >stdout 2>stderr
flops=$(sed -n 's/.*"flops":"\([0-9]*\)".*/\1/p' long/training.safetensors | head -n 1)
flops=$(printf '"flops":"5e%0*d"' $((${#flops} - 2)) 12)
sed "s/\"seconds\":\"...../\"seconds\":\"9000./; s/\"flops\":\"[0-9]*\"/$flops/" long/training.safetensors >edited
mv edited long/training.safetensors
check "seconds of the whole run" gives 0 "^final: .*, 90[0-9][0-9]\.[0-9] s$" resume
check "TFLOPs of the whole run" grep -q "^step 30: .*, 5\.00 TFLOPs so far" stdout
check "--balance leaves a --pp that is given" gives 0 "" eval "out=seen train --steps 1 --balance work --pp 0.02"
check "it is there" grep -q '"pp_coef": 0.02,' seen/config.json

# The last evaluation's table of experts and its entropies are those of the routes.
out=seen; train --steps 9 --eval-tokens 9999 >shown 2>stderr
tail -c 300 text >validation
"$generate" seen --threads 1 --score validation --routes r.csv >said 2>stderr
sed -n '/^step 9: /,$p' shown >last
for l in 1 2; do
    routes() { awk -F , -v l=$l 'NR > 1 && $5 == l - 1 { n = split($9, P, " "); k = split($6, e, " "); split($7, H, " ")
        for (i = 1; i <= n; i++) if (P[i] > 0) x -= P[i] * log(P[i])
        for (i = 1; i <= k; i++) { t[e[i]]++; w[e[i]] += H[i]; all += H[i] } c++ }
        END { for (i = 0; i < n; i++) printf "%f %f ", 100 * t[i] / c, 100 * w[i] / all; print x / c }' r.csv; }
    routes >expected
    { grep "^layer $l " last | tr -c '0-9\n' ' ' | cut -c 8-
      sed 's/   /\n/g; s/^ *//' last | sed -n "s/^ *$l: \([0-9.]*\) .*/\1/p"; } | tr '\n' ' ' >printed
    check "layer $l: experts' tokens and compute, and entropy" awk '
        { for (i = 1; i <= NF; i++) x[NR, i] = $i; n[NR] = NF }
        END { for (i = 1; i <= 9; i++) { d = x[1, i] - x[2, i]; within = i < 9 ? 0.51 : 0.006
            bad += d > within || d < -within } exit bad || n[1] != 9 || n[2] != 9 }' expected printed
done
"$generate" het --threads 1 --score text --routes het.csv >said 2>stderr
awk -F , 'NR > 1 && $5 == 0 { x[NR] = $3; h[NR] = $4; s += $4; n++ } END { for (i in h) if (h[i] < s / n)
    { a += x[i]; na++ } else { b += x[i]; nb++ } print na * nb ? b / nb - a / na : 0 }' het.csv >difference
check "routes: where the model is unsure, the loss is higher" awk '{ exit !($1 > 0.1) }' difference
check "the table goes to a pipe's reader" sh -c '[ -p pipe ] || mkfifo pipe; cat pipe >read & reader=$!
    "$1" seen --threads 1 --score validation --routes pipe && [ -p pipe ] || kill $reader
    wait $reader' sh "$generate"
check "whole" cmp r.csv read

# Two windows for the last evaluation: the first and the last 8 predictions.
head -c 9 validation >front; tail -c 9 validation >back
out=seen; resume --final-tokens 16 >stdout 2>stderr
check "evaluation windows reach from end to end" near "$(sed -n 's/^final: val_loss \([0-9.]*\) .*/\1/p' stdout)" \
    "($(score seen front) + $(score seen back)) / 2" 2e-6

# --- crashes ----------------------------------------------------------------------------------------
out=cut; train --steps 20 --stop-at 6 >said 2>stderr
rows cut/log.csv | cut -d , -f 1-4 >before
sed -n '5,6s/^[45],/7,/p; 7p' cut/log.csv >rest; cat rest >>cut/log.csv; printf '9,1' >>cut/log.csv
check "rows that were not saved are dropped" gives 0 "^stopped" resume --stop-at 9
check "each step has one row" [ "$(cut -d , -f 1 cut/log.csv | tr '\n' ' ')" = "step 1 2 3 4 5 6 7 8 9 " ]
rm -rf cut
# shellcheck disable=SC2086
"$train_tiny" --data text --threads 1 $model --steps 100000000 --eval-every 100000000 --save-every 2 --out cut \
    >stdout 2>stderr & running=$!
i=0; while [ ! -s cut/training.safetensors ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i + 1)); done
kill -9 $running; wait $running 2>/dev/null; running=
check "--save-every: a killed run goes on" gives 0 "^stopped" resume --stop-at $(($(ends cut 1) + 1))
train --steps 2000 --stop-at 20 >said 2>stderr
rm cut/best/model.safetensors; mkdir -p cut/best/model.safetensors/in-the-way
cksum cut/training.safetensors cut/model.safetensors >before
check "best/ that cannot be saved" gives 1 "" resume --stop-at 60
cksum cut/training.safetensors cut/model.safetensors >after
check "so the state is not, either: the next start does both" cmp before after
rm -r cut/best/model.safetensors
check "and does" gives 0 "^stopped" resume --stop-at 60
check "best" [ -s cut/best/model.safetensors ]
if have strace && strace -o trace true 2>stderr; then
    # shellcheck disable=SC2086
    strace -f -e trace=rename,renameat,renameat2 -o trace "$train_tiny" --data text --threads 1 $model $recipe \
        --steps 5 --out traced >stdout 2>stderr
    check "a crash between the saves leaves best/ to be saved again: the state comes last" \
        awk -F '"' '$4 ~ /best\// { best = NR } $4 == "traced/training.safetensors" { state = NR }
            END { exit !(best && best < state) }' trace
fi
mkdir only; cp -r seen/best only
check "a best/ alone is not written over" gives 1 "only: there is a run already" \
    "$train_tiny" --data text --threads 1 $model --steps 1 --out only
rm -rf old; cp -r "$root/tests/files/version-1.0/topk" old
out=old; resume --data text --eval-tokens 200 --steps 22 >stdout 2>stderr
check "an old run's best/ counts" not grep -q "starts anew" stdout
train --steps 20 --stop-at 1 --lr 0.30000000000000004 >stdout 2>stderr
check "recipe.txt has all digits of a number" grep -q -x "lr 0.30000000000000004" "$out/recipe.txt"

# --- more of --init and of tokens -------------------------------------------------------------------
check "--init: another k" gives 0 "top-k 1;" begin het --k 1 --steps 0
# A hidden unit that W2 does not use has no strength, whatever W1 and W3 are.
out=lame; train --experts 1 --layers 1 --hidden 6 --steps 30 >stdout 2>stderr
file=lame/model.safetensors
start=$(od -An -N 8 -t u1 $file | awk '{ print 8 + $1 + 256 * $2 + 65536 * $3 }')
offset=$(tr '}' '\n' <$file | sed -n 's/.*w2.weight".*"data_offsets":\[\([0-9]*\),.*/\1/p' | head -n 1)
for row in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    head -c 4 /dev/zero | dd of=$file bs=1 seek=$((start + offset + (row * 6 + 2) * 4)) conv=notrunc 2>stderr
done
check "--slim drops the unit without effect" gives 0 "widths 5$" begin lame --slim homogeneous --hidden 5 --steps 0
check "so the loss stays" near "$(score begun)" "$(score lame)" 2e-6
sed -n 101,109p ids >nine; printf "$(octal16 <nine)" >nine.bin; cp val.bin val2.bin; printf '\036\000' >>val2.bin
check "the shortest file of tokens" gives 0 "^final: " learn --tokens nine.bin --tokens-val val.bin --steps 20
check "a token that only the validation has" gives 0 "^final: " learn --tokens train.bin --tokens-val val2.bin
check "counts" grep -q '"vocab_size": 31,' tokens/config.json
cp train.bin changing.bin
learn --tokens changing.bin --tokens-val val.bin --stop-at 3 >stdout 2>stderr
printf '\000\000\000\000' | dd of=changing.bin bs=1 seek=2000 conv=notrunc 2>stderr
out=tokens; check "a changed file beside the same validation" gives 1 "changing.bin has changed" resume
{ printf "$(header 20240801 7 2)"; printf '\001\000\000\000\377\377\377\377'; } >high.bin
check "a token of 32 bits" gives 1 "token 1 is 4294967295: it must be below 1048576" learn --tokens high.bin
learn --tokens train.bin --tokens-val val.bin --routing topp --steps 2000 --stop-at 40 >stdout 2>stderr
resume --tokens nine.bin --tokens-val val.bin --lr 0 --min-lr 0 --stop-at 41 >stdout 2>stderr
"$generate" tokens --threads 1 --score nine.bin --routes r.csv >said 2>stderr
check "log: experts a token, over all layers" near "$(ends tokens 13)" \
    "$(awk -F , 'NR > 1 { x += split($6, e, " "); n++ } END { printf "%.6f", x / n }' r.csv)" 2e-6
for option in "--page x.html" --show-tiles; do
    # shellcheck disable=SC2086
    check "$option needs bytes" gives 2 "${option%% *}: needs a model whose tokens are bytes" \
        "$generate" tokens --score val.bin $option
done
"$generate" bytes --threads 1 --tokens "1,2, 3" -n 30 >numbers-out
check "--tokens with commas" cmp numbers-out numbers-of-bytes
# Token 1 is a backslash, token 3 is in the list of added tokens alone.
printf '{"model": {"vocab": {"e": 0, "\\\\": 1}}, "added_tokens": [{"id": 3, "content": "<|end|>"}]}' >added.json
yes '0 1' | head -n 150 | tr ' ' '\n' >ones; printf "$(octal16 <ones)" >ones.bin
check "an added token" gives 0 "^val_loss" learn --tokens ones.bin --tokenizer added.json --steps 60
check "counts, too" grep -q '"vocab_size": 4,' tokens/config.json
check "a backslash is one byte" [ "$("$generate" tokens --threads 1 --temperature 0 -n 5)" = '\e\e\' ]

# --- what generate begins with ----------------------------------------------------------------------
write -n 100 >g1; write -n 100 --temperature 0.8 --top-k 0 --top-p 1 --seed 1337 >g2
check "the defaults are those of --help" cmp g1 g2
tr q '\t' <text >tabbed                                             # a byte below the newline
out=tabs-run; train --data tabbed --steps 30 >stdout 2>stderr
"$generate" tabs-run --threads 1 -n 100 >g1
"$generate" tabs-run --threads 1 -n 100 --prompt "
" | tail -c 100 >g2
check "without a prompt: after a newline" cmp g1 g2
summary
