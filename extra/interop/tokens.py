"""tokens.py - makes files of tokens for train_tiny --tokens: trains a byte-level BPE on a text and
encodes it, or encodes with a tokenizer.json that is there.

    python3 extra/interop/tokens.py my.txt tokens/ --vocab 512      tokens/train.bin val.bin tokenizer.json
    python3 extra/interop/tokens.py my.txt tokens/ --tokenizer run/tokenizer.json
    python3 extra/interop/tokens.py --encode "To be" --tokenizer run/tokenizer.json    numbers, to print

The first nine tenths of the text are for training, as train_tiny itself divides a text. It needs
the package tokenizers, which extra/requirements.txt lists."""

import argparse
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


def write(path, ids):
    """Numbers of 16 bits, the lowest byte first."""
    if max(ids) > 65535:
        sys.exit("%s: token %d does not fit into 16 bits" % (path, max(ids)))
    numbers = array("H", ids)
    if sys.byteorder == "big":
        numbers.byteswap()
    path.write_bytes(numbers.tobytes())


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("text", type=Path, nargs="?")
    options.add_argument("out", type=Path, nargs="?")
    options.add_argument("--vocab", type=int, default=512, help="tokens of a new tokenizer")
    options.add_argument("--tokenizer", help="a tokenizer.json that is there")
    options.add_argument("--encode", help="print the tokens of this text")
    given = options.parse_args()
    old = Tokenizer.from_file(given.tokenizer) if given.tokenizer else None
    if given.encode is not None:
        if not old:
            options.error("--encode needs --tokenizer")
        print(*old.encode(given.encode).ids)
        return
    if not given.out:
        options.error("needs a text and a directory")
    raw = given.text.read_bytes()
    first = len(raw) * 9 // 10
    parts = [part.decode("utf-8", "replace") for part in (raw[:first], raw[first:])]
    tokenizer = old or train(parts[0], given.vocab)
    given.out.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train.bin", "val.bin"), parts):
        ids = tokenizer.encode(part).ids
        write(given.out / name, ids)
        print("%s: %d tokens for %d bytes" % (given.out / name, len(ids), len(part.encode())))
    tokenizer.save(str(given.out / "tokenizer.json"))


main()
