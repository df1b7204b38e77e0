"""tokens.py - makes files of tokens for train_tiny --tokens.

    tokens.py my.txt DIR 512               train a byte-level BPE of 512 tokens, and encode
    tokens.py my.txt DIR tokenizer.json    encode with a tokenizer that is there
    tokens.py - tokenizer.json             print the tokens of the text on standard input

DIR receives train.bin, the first nine tenths of the text, val.bin and tokenizer.json. It needs the
package tokenizers."""

import sys
from array import array
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def train(text, vocab):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=vocab, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def write(path, ids, text):
    """Numbers of 16 bits, the lowest byte first."""
    if max(ids, default=0) > 65535:
        sys.exit("%s: token %d does not fit into 16 bits" % (path, max(ids)))
    numbers = array("H", ids)
    if sys.byteorder == "big":
        numbers.byteswap()
    path.write_bytes(numbers.tobytes())
    print("%s: %d tokens for %d bytes" % (path, len(ids), len(text.encode())))


def main(words):
    if len(words) == 2 and words[0] == "-":
        print(*Tokenizer.from_file(words[1]).encode(sys.stdin.read()).ids)
        return
    if len(words) != 3:
        sys.exit(__doc__)
    raw, out = Path(words[0]).read_bytes(), Path(words[1])
    first = len(raw) * 9 // 10
    while first < len(raw) and raw[first] & 0xC0 == 0x80:       # not in the middle of a letter
        first -= 1
    parts = [part.decode() for part in (raw[:first], raw[first:])]
    tokenizer = train(parts[0], int(words[2])) if words[2].isdigit() else \
        Tokenizer.from_file(words[2])
    out.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train.bin", "val.bin"), parts):
        write(out / name, tokenizer.encode(part).ids, part)
    tokenizer.save(str(out / "tokenizer.json"))


main(sys.argv[1:])
