#!/bin/sh
# runs.sh - runs keep their word: --resume needs no other option, a changed text is not trained on
# silently, a run can begin with the weights of another model, and can learn from files of tokens.
# shellcheck source=tests/harness.sh
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
check "8 bytes for 7 tokens" near "$(sed -n 's/^val_loss \([0-9.]*\) .*/\1/p' stdout)" "$a_token * 7 / 8" 0.004
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
one=$(out=sum; train --steps 1 --ent 0.01 --z 0.01 --batch 2 >stdout 2>stderr; cut -d , -f 9-10 sum/log.csv | tail -n 1)
two=$(out=sum; train --steps 1 --ent 0.01 --z 0.01 --batch 1 --accum 2 >stdout 2>stderr; cut -d , -f 9-10 sum/log.csv | tail -n 1)
check "micro-batches: ent" near "${one%,*}" "${two%,*}" 2e-6
check "micro-batches: z" near "${one#*,}" "${two#*,}" 2e-6
out=left; train --steps 3000 --stop-at 40 >stdout 2>stderr
resume --stop-at 80 >stdout 2>stderr
check "the time left after --resume is that of this start" awk '/ tok.s .* left/ {
    for (i = 1; i <= NF; i++) if ($i == "tok/s") { split($(i + 1), t, ":"); speed = $(i - 1) }
    left = 60 * t[1] + t[2]; should = (3000 - 80) * 16 / speed
    bad = left > should * 1.02 + 1 || left < should * 0.98 - 1.5; seen = 1 } END { exit bad || !seen }' stdout
out=seen; train --steps 9 --eval-tokens 9999 >stdout 2>stderr
tail -c 300 text >validation
"$generate" seen --threads 1 --score validation --routes r.csv >said 2>stderr
for l in 1 2; do
    check "entropy of layer $l" near "$(awk -v l=$l '$1 == l ":" { print $2 }' l=$l <<END
$(grep -A 1 "^layer: entropy" stdout | tail -n 1 | sed 's/   /\n/g; s/^ *//')
END
)" "$(awk -F , -v l=$l 'NR > 1 && $5 == l - 1 { n = split($9, P, " "); for (i = 1; i <= n; i++)
        if (P[i] > 0) x -= P[i] * log(P[i]); c++ } END { print x / c }' r.csv)" 0.006
done
name=$(printf '%0955d' 0); mkdir -p "d/$(printf '%0200d' 0)"
long() { awk "BEGIN { for (i = 0; i < $1 / 4; i++) printf \"d/./\" }"; }
mkdir d 2>stderr
check "--out of 960 bytes" gives 1 "cannot" "$train_tiny" --data none --out "/none/$(long 952)/x"
check "--out of 961 bytes" gives 2 "longer than 960 bytes" "$train_tiny" --data none --out "/none/$(long 952)/xy"
summary
