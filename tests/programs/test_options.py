"""No option and no value of one breaks a program.

The options, what they take and in which range are read from the programs' own --help. Each is given
good and bad values of every kind, and each run must end at once, by itself, with the status that
the *printed* range asks for: 0; 2 for what is no value of that option; 1 for anything else. A
failure is one line on standard error (or two, the second a hint in brackets) that begins with the
program's name and says which option or file is at fault, and leaves an older run in --out as it
was, to the bit; a success leaves standard error empty. Memory is limited, so that what is too large
must be refused, not killed. The sanitizers need terabytes of addresses, so their programs run
without a limit and are spared the values that need one."""

import hashlib
import math
import multiprocessing
import os
import re
import resource
import shutil
import struct
import subprocess

import pytest
from harness import BIN, GENERATE, TRAIN, in_memory

SANITIZED = "sanitize" in BIN.name
MEMORY, SECONDS, LONG = 2 << 30, 60, 100000
MOST_TOUCHED = 600 << 10       # kilobytes: what is too large is refused before it takes memory
KEPT = ("config.json", "model.safetensors", "training.safetensors", "tokenizer.json", "log.csv",
        "best/config.json", "best/model.safetensors", "tokenizer_config.json")
MODEL = {"--width": 4, "--heads": 1, "--layers": 1, "--context": 4, "--experts": 2, "--hidden": 3,
         "--batch": 1, "--eval-tokens": 16, "--threads": 1, "--steps": 1, "--data": "text",
         "--out": "run", "--overwrite": None}


# --- running a program ----------------------------------------------------------------------------

class Run:
    """A run that is over: status (negative: a signal), out and error, as bytes."""

    def __init__(self, program, arguments):
        self.program, self.arguments = program.name, [os.fsencode(a) for a in arguments]
        limits = "ulimit -c 0; " + ("" if SANITIZED else "ulimit -v %d; " % (MEMORY >> 10))
        run = subprocess.run(["sh", "-c", limits + 'exec "$@"', "sh", program] + arguments,
                             stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
        self.status, self.out, self.error = run.returncode, run.stdout, run.stderr

    def __repr__(self):
        return "%s ...%r: status %s\n   %.300r\n   %.300r" % (
            self.program, b" ".join(self.arguments)[-200:], self.status, self.out, self.error)


def state(directory):
    """What a failed run must leave as it was."""
    found = []
    for name in KEPT:
        try:
            with open(os.path.join(directory, name), "rb") as f:
                found.append((name, hashlib.sha256(f.read()).hexdigest()))
        except OSError:
            pass
    return found


def ends(program, arguments, statuses, culprits=()):
    """Asserts what must be so of a run, which it returns. One that fails names a culprit."""
    run = Run(program, arguments)
    assert run.status in statuses, str(run)
    # before anything else there may be warnings, each with a hint or without
    run.error = re.sub(rb"\A(train_tiny: warning: [^\n]+\n(\([^\n]+\)\n)?)*", b"", run.error)
    if run.status == 0:
        assert not run.error, str(run)
        return run
    assert re.fullmatch(rb"%s: [^\n]*\n(\([^\n]*\n)?" % program.name.encode(), run.error), str(run)
    assert len(run.error) < 2500, str(run)
    assert not re.search(rb"[\0-\x09\x0b-\x1f\x7f]", run.error), str(run)
    assert any(os.fsencode(c) in run.error for c in culprits), "%s: %s" % (culprits, run)
    assert b"final:" not in run.out and b"nll" not in run.out, str(run)
    return run


@pytest.fixture(scope="module", autouse=True)
def here():
    """A directory with texts and runs."""
    with in_memory("options"):
        for name, text in (("text", "To be, or not to be, that is the question.\n" * 50),
                           ("other", "To be, or not to be, that is no question.\n" * 50),
                           ("same", "a" * 2000)):
            with open(name, "w") as f:
                f.write(text)
        assert os.path.getsize("text") == 2150
        for out in ("run", "older", "mixtral"):
            ends(TRAIN, train(out=out, experts=3 if out == "older" else 2), [0])
        for name, ids in (("tokens", "0001020305" * 200), ("tokens2", "0102000304" * 200)):
            with open(name, "wb") as f:
                f.write(b"".join(bytes([int(c), 0]) for c in ids))
        with open("pieces", "w") as f:
            f.write('{"model": {"vocab": {"a": 39}}}')
        for out, more in (("dense", "--experts 1"), ("equal", "--hidden 4 --sizes 1,1"),
                          ("run2", "--seed 2")):
            ends(TRAIN, train(out=out) + more.split(), [0])
        yield


# --- the table of options, as --help prints it ----------------------------------------------------

class Option:
    """kind: "flag", "text", "choice", "whole", "real"; of the last two: low, high, open ends."""

    def __init__(self, program, name, what, rest):
        self.program, self.name, self.words = program, name, what.split("|") if "|" in what else []
        self.kind = {"": "flag", "N": "whole", "X": "real"}.get(
            what, "choice" if self.words else "text")
        found = re.search(r" in ([\[(])(\S+), (\S+)([\])])$", rest)
        self.range = found and found.groups()
        if self.range and self.kind in ("whole", "real"):
            number = int if self.kind == "whole" else float
            self.low, self.high = number(self.range[1]), number(self.range[2])
            self.above, self.below = self.range[0] == "(", self.range[3] == ")"

    def __repr__(self):
        return "%s %s" % (self.program.name, self.name)

    def accepts(self, value):
        """Is this a value, by what --help says? A plain number, finite, in the range."""
        if self.kind in ("text", "flag"):
            return self.kind == "text"
        value = os.fsdecode(value)
        if self.kind == "choice":
            return value in self.words
        plain = r"[+-]?\d+" if self.kind == "whole" else \
            r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"
        if not re.fullmatch(plain, value, re.ASCII):
            return False
        if self.kind == "whole":       # of a hundred digits, which Python would not read, the last
            digits = value.lstrip("+-").lstrip("0")
            x = int("0" + digits[:40]) * (-1 if value[0] == "-" else 1)
        else:
            x = float(value)
        return (x > self.low or x == self.low and not self.above) and \
            (x < self.high or x == self.high and not self.below)


HELP = {program: Run(program, ["--help"]) for program in (GENERATE, TRAIN)}
LINES = [(program, line) for program in HELP for line in HELP[program].out.decode().replace(
    "\n                       ", " ").split("\n") if line.startswith("  -")]
FOUND = [(program, re.match(r"  (--?[a-z0-9-]+) (?:(N|X|[A-Z]+2?|\S+\|\S+) )?(.*)$", line))
         for program, line in LINES]
OPTIONS = [Option(program, m[1], m[2] or "", m[3])
           for program, m in FOUND if m and m[1] != "--help"]
FLAGS = [o for o in OPTIONS if o.kind == "flag"]
WITH_VALUE = [o for o in OPTIONS if o.kind != "flag"]

each_program = pytest.mark.parametrize("program", [GENERATE, TRAIN], ids=lambda p: p.name)


def each(options):
    return pytest.mark.parametrize("o", options, ids=repr)


@each_program
def test_help_lists_the_options(program):
    run = HELP[program]
    assert run.status == 0 and not run.error and run.out.startswith(
        b"usage: %s" % program.name.encode()), str(run)
    assert all(option for _, option in FOUND), LINES
    assert len([o for o in OPTIONS if o.program == program]) > {GENERATE: 10, TRAIN: 35}[program]


# What a range must be, whatever the program thinks: the ends that the model's mathematics, the
# papers or the header's limits give.
ENDS = {"--width": (2, 1 << 20), "--layers": (1, 1024), "--context": (1, 1 << 20), "--k": (1, 256),
        "--experts": (1, 256), "--p": (1e-9, 1), "--top-p": (1e-9, 1), "--seed": (0, (1 << 64) - 1),
        "--threads": (1, 1024), "--pp": (0, 1e6), "--lb": (0, 1e6), "--ent": (0, 1e6),
        "--z": (0, 1e6), "--dropout": (0, .9), "--steps": (0, None), "--batch": (1, 1 << 24),
        "--accum": (1, None), "--lr": (0, None), "--min-lr": (0, None), "--warmup": (0, None),
        "--weight-decay": (0, None), "--clip": (0, None), "--beta1": (0, None),
        "--beta2": (0, None), "--temperature": (0, None), "--top-k": (0, None), "-n": (0, None)}


def test_ranges_are_printed_and_right():
    for o in OPTIONS:
        assert bool(o.range) == (o.kind in ("whole", "real")), o
        for end, right in zip((o.low, o.high) if o.range else (), ENDS.get(o.name, ())):
            assert right is None or end == right, (o, end, right)


# --- each option, each value ----------------------------------------------------------------------

def values_of(o):
    """Values for an option: all that is wrong with every kind, and both sides of both ends."""
    values = ["0", "-1", "1", "2", "+1", "-0", "1.0", "1.5", "nan", "NaN", "-nan", "inf", "-inf",
              "infinity", "1e999", "-1e999", "1e-999", "0x10", "0x1p3", "", " ", "x", "one", "1 2",
              " 1", "1 ", "1,", "1,5", "1;", "1e", "e1", ".", "-", "+", "--1", "1-", "1e+", "1\n",
              "\n", "a\nb", "\n(", "\x1b[31m", "%s%n", "9" * 30, "18446744073709551616",
              "18446744073709551615", "9223372036854775808", "2147483648", "4294967297",
              "-2147483649", "0" * LONG + "1", "x" * LONG, "1" * LONG, b"\xff\xfe", b"1\xff",
              b"\xc3", "0b1", "1_000", "\u0661", "1d3", "1f", "$(echo 1)"]
    if o.kind == "whole":
        values += [str(x) for end in (o.low, o.high) for x in (end - 1, end, end + 1)]
    if o.kind == "real":
        ends = [o.low] + ([o.high] if o.high != float("inf") else [])
        values += [repr(end + d) for end in ends for d in (0.0, 1e-12, -1e-12, 1.0, -1.0)]
        values += ["1e308", "1.7976931348623157e308", "1.8e308", "5e-324", "1E0", "1.", ".5"]
    if o.kind == "choice":
        values += o.words + [o.words[0].upper(), o.words[0] + " ", o.words[0][:-1], "|",
                             "|".join(o.words), o.words[1] + "|"]
    values = list(dict.fromkeys(values))
    return values[::3] if SANITIZED else values            # each starts ten times as slowly


def number(value):
    try:
        return float(value)
    except ValueError:
        return 0.0


def impossible(name, value):
    """The MODEL above and this value, which is in its range: if they can make no run, what may the
    message name? The length of the text, and memory, are facts of this test."""
    n = number(value)
    if name == "--width" and (n % 2 or n > 2000) or name == "--heads" and n not in (1, 2):
        return ["--width", "memory"]
    if name == "--kv-heads" and n not in (1, 2):           # of 2
        return ["--kv-heads"]
    if name == "--context" and n > 1799:
        return ["--context", "memory"]
    if name == "--k" and n > 2:
        return ["--k"]
    if name == "--batch" and n > 10000:
        return ["--batch", "memory"]
    if name == "--hidden" and n > 2000:
        return ["--hidden", "memory"]
    if name == "--min-lr" and n > 0.002:
        return ["--min-lr"]
    if name in ("--lr", "--weight-decay", "--muon-lr") and n > 100:
        return [name, "AdamW with lr"]
    return [name] if value in ("cuda", "bf16") else []


def too_long(name, value):
    """In range, and not to be waited for (or not with a limit on memory: so many stacks)."""
    most = {"--steps": 100, "--accum": 100, "-n": 10000, "--threads": 8, "--layers": 64,
            "--experts": 64, "--width": 2000, "--batch": 10000, "--context": 1800, "--hidden": 2000}
    n = number(value)
    if name in ("--width", "--batch", "--context", "--hidden") and not SANITIZED:
        return False                                       # these must be refused
    return n > most.get(name, float("inf"))


# What an option needs beside it. Some of MODEL would be in the way.
TOGETHER = {"--budget": ["--routing", "topp"], "--balance-rate": ["--balance", "tokens"],
            "--kv-heads": ["--heads", "2"],
            "--p": ["--routing", "topp"], "--muon-lr": ["--optimizer", "muon"],
            "--upcycle": ["--init", "dense"], "--slim": ["--init", "equal"],
            "--tokens-val": ["--tokens", "tokens"], "--tokenizer": ["--tokens", "tokens"]}
NOT_WITH = {"--tokens": "--data", "--tokens-val": "--data", "--tokenizer": "--data",
            "--upcycle": "--experts"}


def train(option=None, value=None, **more):
    """The arguments of a run of a moment, but for one option."""
    arguments = dict(MODEL)
    arguments.pop(option, None)
    arguments.pop(NOT_WITH.get(option), None)
    arguments.update(("--" + k.replace("_", "-"), v) for k, v in more.items())
    given = [str(x) for pair in arguments.items() for x in pair if x is not None]
    if option:
        given.append(option)
    return given + ([value] if value is not None else [])


def glue(arguments):
    """The last option and its value in one word."""
    name, value = os.fsencode(arguments[-2]), os.fsencode(arguments[-1])
    return arguments[:-2] + [name + (b"=" if name.startswith(b"--") else b"") + value]


WITH_SCORE = ("--routes", "--page", "--devices")
SIZES = ("1,5",)                                           # those of values_of that are two ratios
WRONG_TEXTS = {"--data": ["cannot read", "is a directory", "bytes"], "--score": ["cannot read"],
               "--tokens": ["cannot open", "too long", "--tokens", "is no regular file"], "--init": ["cannot open", "path"],
               "--tokens-val": ["cannot open", "too long", "is no regular file"], "--prompt-file": ["cannot read"],
               "--tokenizer": ["cannot open", "too long"], "--slim": ["--slim", "--hidden"],
               "--out": ["cannot", "--out", "too long"], "--routes": ["cannot write", "too long"],
               "--page": ["cannot write", "too long"],
               "--export-mixtral": ["cannot", "too long", "is the model", "holds a run"]}


def right_end(o, value):
    """The statuses that a run may have, and what its message may name."""
    if o.kind == "text":     # any text is a value; what may then be wrong is known of each
        return ([0 if value in SIZES else 2] if o.name == "--sizes"
                else [1] if o.name in ("--data", "--score", "--prompt-file")    # there are no such
                else [0, 1, 2]), WRONG_TEXTS.get(o.name, [o.name])
    if not o.accepts(value):
        return [2], [o.name]
    limits = impossible(o.name, value) if o.program == TRAIN or o.kind == "choice" else []
    if too_long(o.name, value):
        return [1, 2] if limits else [1], ["nothing", "none"] + limits
    return [0, 1] if limits[1:] == ["AdamW with lr"] else [1, 2] if limits else [0], limits


def touched():
    """The most kilobytes that a child of this process took."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def try_values(o, older, turns):
    """The option with these values, apart and glued in turn, over an older run."""
    shutil.rmtree(older, ignore_errors=True)
    shutil.copytree("older", older)
    before = state(older)
    for turn, value in turns:
        apart = o.name == "-n" and value == ""             # "-n" and "" are no one word
        if o.name in ("--routes", "--page"):               # files that no other test may meet
            os.makedirs("made", exist_ok=True)
            value = os.fsdecode(b"made/" + os.fsencode(value))
        good = o.accepts(value)
        later = good and too_long(o.name, value)           # that it is accepted is seen at once
        if o.program == TRAIN:
            more = {"data": "nothing"} if later else {}
            if o.name != "--out":
                more["out"] = older
            arguments = train(o.name, **more)[:-1] + TOGETHER.get(o.name, []) + [o.name, value]
        else:
            more = ["--score", "text"] if o.name in WITH_SCORE else ["-n", "2"]
            arguments = ["none" if later else "run", "--threads", "1", *more, o.name, value]
        run = ends(o.program, glue(arguments) if turn % 2 and not apart else arguments,
                   *right_end(o, value))
        if o.program == TRAIN:
            after = state(older)
            assert not run.status or before == after, "the older run is whole: %r" % run
            before = after
            assert good or not run.out, "it had begun: %r" % run
    return touched()


@each(WITH_VALUE)
def test_every_value(o):
    turns = list(enumerate(values_of(o)))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        sizes = pool.starmap(try_values, [(o, "older0", turns[::2]), (o, "older1", turns[1::2])], 1)
    assert SANITIZED or max(sizes) < MOST_TOUCHED


def base_of(program):
    return train() if program == TRAIN else ["run", "-n", "2", "--threads", "1"]


@each(FLAGS)
def test_flag(o):
    base = base_of(o.program)
    if o.name == "--resume":
        ends(TRAIN, base + [o.name], [2], ["--overwrite"])
        base.remove("--overwrite")
    elif o.name == "--overwrite":
        base.remove("--overwrite")
        before = state("run")
        ends(TRAIN, base, [1], ["--out run"])
        assert state("run") == before
    elif o.name == "--show-tiles":
        ends(GENERATE, base + [o.name], [2], [o.name])
        base += ["--score", "text"]
    ends(o.program, base + [o.name], [0])
    for value in ("", "1", "yes", "x" * LONG):
        ends(o.program, base + [o.name + "=" + value], [2], [o.name])
    ends(o.program, base + [o.name, "1"], [2], ["1: "])


# --- an option given twice ------------------------------------------------------------------------

TWO = {"--data": ("text", "other"), "--out": ("out1", "out2"), "--width": (4, 8),
       "--layers": (1, 2), "--heads": (1, 2), "--kv-heads": (1, 2), "--context": (4, 5),
       "--experts": (2, 3), "--hidden": (3, 5), "--sizes": ("3,1", "1,1"),
       "--routing": ("topk", "topp"), "--k": (1, 2),
       "--p": (.1, .9), "--gate": ("norm", "raw"), "--pp": (0, 1), "--lb": (0, 1), "--ent": (0, 1),
       "--z": (0, 1), "--steps": (1, 2), "--batch": (1, 2), "--accum": (1, 2), "--lr": (.1, .2),
       "--min-lr": (0, .001), "--warmup": (1, 2), "--weight-decay": (0, 1), "--beta1": (0, .5),
       "--beta2": (.5, .9), "--optimizer": ("adamw", "muon"), "--muon-lr": (.1, .2),
       "--dropout": (0, .5), "--clip": (1e-9, 1), "--eval-every": (1, 3), "--eval-tokens": (4, 40),
       "--save-every": (1, 3), "--seed": (1, 2), "--threads": (1, 2), "--prompt": ("a", "b"),
       "-n": (3, 4), "--temperature": (0, 9), "--top-k": (1, 60), "--top-p": (1e-6, 1),
       "--score": ("text", "other"), "--export-mixtral": ("m1", "m2"), "--stop-at": (1, 2),
       "--devices": (1, 2),
       "--routes": ("r1", "r2"), "--page": ("p1", "p2"), "--budget": (.1, 1),
       "--balance": ("off", "work"), "--balance-rate": (0, 1), "--final-tokens": (4, 40),
       "--tokens": ("tokens", "tokens2"), "--tokens-val": ("tokens", "tokens2"),
       "--init": ("run", "run2"), "--upcycle": (2, 3), "--slim": ("1,2", "1,1"),
       "--tokenizer": ("run/tokenizer.json", "pieces"), "--prompt-file": ("text", "other")}
TWO_OF_GENERATE = {"--tokens": ("1 2", "3")}


def outcome(program, arguments, made):
    """What can be seen of a run, without times: what it said, and the files that it made."""
    for directory in made:
        shutil.rmtree(directory, ignore_errors=True)
    run = ends(program, arguments, [0])
    said = re.sub(rb"[\d.]+ tok/s, [\d.]+ s$|step .* tok/s.*|run .*", b"", run.out,
                  flags=re.MULTILINE)
    rows = []
    for directory in made:
        if os.path.exists(directory + "/log.csv"):
            with open(directory + "/log.csv") as log:
                rows.append([r.split(",")[:2] + r.split(",")[3:] for r in log])
    return [said, rows] + [[d] + [s for s in state(d) if s[0] not in (
        "log.csv", "training.safetensors")] for d in made]


@each([o for o in WITH_VALUE if o.name not in ("--backend", "--precision", "--routes", "--page")])
def test_the_last_of_two_counts(o):
    two = TWO_OF_GENERATE if repr(o) == "generate --tokens" else TWO
    a, b = map(str, two[o.name])
    if o.program == TRAIN:
        base = train(o.name, out="twice", steps=5, eval_every=2, lr=.05, warmup=1, ent=0)[:-1]
        if o.name in ("--gate", "--k"):
            base += ["--experts", "3"]
        made = ["twice"] if o.name != "--out" else ["out1", "out2"]
    else:
        base, made = ["run", "--threads", "1", "-n", "40"], []
        if o.name == "--score":
            base = base[:3]
        if o.name == "--devices":
            base = base[:3] + ["--score", "text"]
        if o.name == "--export-mixtral":
            base, made = ["mixtral"], ["m1", "m2"]
    base += TOGETHER.get(o.name, []) if o.program == TRAIN else []
    first = outcome(o.program, base + [o.name, a], made)
    second = outcome(o.program, base + [o.name, b], made)
    # (the place of a moment's save is not to be seen afterwards)
    assert first != second or o.name in ("--save-every", "--threads")
    assert outcome(o.program, glue(base + [o.name, a, o.name, b]), made) == second
    assert outcome(o.program, base + [o.name, b, o.name, a], made) == first


@each([o for o in WITH_VALUE if o.name in ("--routes", "--page")])
def test_the_last_of_two_files_is_written(o):
    first, second = TWO[o.name]
    ends(GENERATE, ["run", "--threads", "1", "--score", "text", o.name, first, o.name, second], [0])
    assert not os.path.exists(first) and os.path.exists(second)


# --- the command line as such ---------------------------------------------------------------------

@each(WITH_VALUE)
def test_a_value_is_needed(o):
    ends(o.program, base_of(o.program) + [o.name], [2], [o.name])


@each_program
def test_names_that_are_cut(program):
    kinds = {o.name[2:]: o.kind for o in OPTIONS if o.program == program and o.name[1] == "-"}
    kinds["help"] = "flag"
    for name, n in [(name, n) for name in kinds for n in range(1, len(name))]:
        meant = [x for x in kinds if x.startswith(name[:n])]
        if name[:n] in kinds or meant == ["help"]:
            continue
        cut, flag = "--" + name[:n], kinds[name] == "flag"
        arguments = base_of(program) + [cut + ("" if flag and name != "help" else "=x")]
        if len(meant) > 1:
            ends(program, arguments, [2], [cut])
        elif flag:
            run = Run(program, arguments)
            assert run.status in (0, 2), str(run)               # --show-tiles needs --score
        elif kinds[name] != "text":                        # (any text is a value)
            ends(program, arguments, [2], ["--" + meant[0]])


@each_program
def test_words_that_are_no_options(program):
    for word in ("--bogus", "--bogus=1", "-x", "-", "--=1", "---", "-\n", "--st eps", "-n1x",
                 "--" + "y" * LONG, b"--\xff", b"-\xff", b"-\xffabc", "--help=1", "-Wstep", "-:",
                 "-?", "--%s%n", "-1", "--Steps", "-steps", "--bo\ngus", "--bo\x1b[0mgus"):
        shown = os.fsdecode(word).split("=")[0][:99]
        shown = "-n" if word == "-n1x" and program == GENERATE else shown
        named = re.sub(r"[\n\x1b]", "?", shown)
        ends(program, base_of(program) + [word], [2],
             [named, named[:2] + ":", named[:2]] if named[:2] != "--" else [named])
    for junk in (["junk"], [""], ["\n"], [b"\xff"], ["x" * LONG], ["--", "--steps"], ["--", "-"]):
        ends(program, base_of(program) + junk, [2],
             [re.sub("\n", "?", os.fsdecode(junk[-1])[:99])])
    ends(program, base_of(program) + ["--"], [0])


def test_generate_needs_a_model():
    ends(GENERATE, [], [2], ["which model"])
    ends(GENERATE, ["--"], [2], ["which model"])
    ends(GENERATE, ["--", "run", "-n"], [2], ["-n"])
    ends(GENERATE, ["-n", "3", "--", "run"], [0])
    for bad in ("none", "text", "", "\nnone", b"\xff", "x" * LONG, "/dev/null"):
        ends(GENERATE, [bad], [1], [re.sub("\n", "?", os.fsdecode(bad)[:99]) + "/", "too long"])


@each_program
def test_help_unless_something_before_it_is_wrong(program):
    base, last = base_of(program), [o.name for o in OPTIONS if o.program == program][-1]
    for line in (["--help"], base + ["--help"], ["--help", "--bogus"], ["--hel"],
                 ["--help", "--help"]):
        run = Run(program, line)
        assert run.status == 0 and run.out.startswith(b"usage: ") and not run.error, str(run)
    for line in (["--bogus", "--help"], base + [last, "x", "--help"]):
        ends(program, line, [2], ["--bogus", last])


# --- in range each, impossible together -----------------------------------------------------------

def cost(line, named):
    """The seconds and the kilobytes that a run took. They are those of all children of a process,
    which therefore has to be a new one."""
    ends(TRAIN, line, [1, 2], named)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime, used.ru_maxrss


@pytest.mark.skipif(SANITIZED, reason="the memory of sanitized programs is not limited")
@pytest.mark.parametrize("case", [
    "--width 1048576", "--width 1048576 --layers 1024", "--layers 1024 --width 4096",
    "--batch 16777216 --context 1", "--batch 8388608 --context 1", "--context 1048576",
    "--hidden 1048576 --experts 1 --width 65536", "--hidden 1048576 --experts 2",
    "--experts 256 --batch 2000000", "--heads 524288 --width 1048576", "--heads 3",
    "--width 6 --heads 2", "--kv-heads 2", "--heads 2 --kv-heads 4", "--k 3", "--sizes 1,2,3",
    "--sizes modse --experts 3",
    "--hidden 1 --experts 256 --sizes 1,2", "--lr 0.1 --min-lr 0.2", "--width 2000 --layers 30",
    "--width 2000 --layers 9",                             # each array fits, not all of them
    "--precision bf16", "--optimizer muon --backend cuda", "--resume --batch 16777216",
    "--resume --kv-heads 2", "--resume --width 8", "--resume --seed 3", "--resume --k 4"])
def test_impossible_together_is_refused_at_once(case):
    older, words = state("older"), case.split()
    line = train(out="older", experts=3 if "--resume" in words else 2) + words
    if "--resume" in words:
        line.remove("--overwrite")
    named = [w for w in words if w.startswith("--")] + ["memory", "context", "cuda", "batches"]
    with multiprocessing.get_context("fork").Pool(1) as process:
        seconds, kilobytes = process.apply(cost, (line, named))
    assert seconds < 1
    assert kilobytes < MOST_TOUCHED
    assert state("older") == older


# --- values that break learning -------------------------------------------------------------------

@pytest.mark.parametrize("text", ["text", "same"])
@pytest.mark.parametrize("values", [
    "--lr 10", "--lr 1e3", "--lr 1e10", "--lr 1e20", "--lr 1e30", "--lr 1e38", "--lr 1e300",
    "--weight-decay 1e10", "--weight-decay 1e38", "--weight-decay 1e300", "--clip 1e-30",
    "--clip 1e-300", "--clip 1e300", "--clip 0", "--beta1 0 --beta2 0",
    "--beta1 0.999999 --beta2 0.999999", "--lr 0", "--lr 1e-30", "--lr 1e-300",
    "--pp 1e6 --lb 1e6 --ent 1e6 --z 1e6", "--z 1e6 --clip 0 --lr 1",
    "--dropout 0.9 --lr 1", "--noisy --lr 100", "--routing topp --p 1e-9 --lr 1",
    "--routing topp --p 1", "--optimizer muon --muon-lr 1e10", "--optimizer muon --muon-lr 1e300",
    "--k 1 --lr 100", "--experts 64 --k 64 --lr 10"])
def test_learning_stays_finite_or_stops(values, text):
    """It says why it stops, and what was saved is finite."""
    shutil.rmtree("learning", ignore_errors=True)
    run = ends(TRAIN, train(out="learning", steps=30, warmup=1, save_every=1, eval_every=20,
                            data=text) + values.split(), [0, 1], ["step "])
    if run.status:
        assert re.search(rb"step \d+: .*(finite|is -?nan|is -?inf|gives NaN)", run.error), str(run)
    assert not any(b"n" in x for x in re.findall(rb"(?:loss|val_loss) (\S+)", run.out)), str(run)
    if not os.path.exists("learning/config.json"):
        return
    # one step too many can be saved, before anything has used its weights
    ends(GENERATE, ["learning", "--score", text, "--threads", "1"], [0, 1],
         ["the loss", "gives NaN"])
    if os.path.exists("learning/best"):
        ends(GENERATE, ["learning/best", "--score", text, "--threads", "1"], [0])
    with open("learning/log.csv") as log:
        assert not re.search("nan|inf", log.read())
    with open("learning/model.safetensors", "rb") as f:
        data = f.read()
    at = 8 + int.from_bytes(data[:8], "little")
    weights = struct.unpack("<%df" % ((len(data) - at) // 4), data[at:])
    assert all(map(math.isfinite, weights))
