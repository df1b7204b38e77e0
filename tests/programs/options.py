#!/usr/bin/env python3
"""options.py - no option and no value of one breaks a program.

The options, what they take and in which range are read from the programs' own --help. Each is given
good and bad values of every kind, and each run must end at once, by itself, with the status that
the *printed* range asks for: 0; 2 for what is no value of that option; 1 for anything else. A
failure is one line on standard error (or two, the second a hint in brackets) that begins with the
program's name and says which option or file is at fault, and leaves an older run in --out as it
was, to the bit; a success leaves standard error empty. Memory is limited, so that what is too large
must be refused, not killed. BIN is where the programs are, as "build/sanitized/"; the sanitizers
need terabytes of addresses, so those programs run without a limit and are spared the values that
need one."""

import concurrent.futures
import hashlib
import math
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading

BIN = os.environ.get("BIN", "")
TRAIN, WRITE = (os.path.abspath("./%s%s" % (BIN, name)) for name in ("train_tiny", "generate"))
SANITIZED = "sanitize" in BIN
MEMORY, SECONDS, LONG = 2 << 30, 60, 100000
KEPT = ("config.json", "model.safetensors", "training.safetensors", "tokenizer.json", "log.csv",
        "best/config.json", "best/model.safetensors", "tokenizer_config.json")
MODEL = dict([("--width", 4), ("--heads", 1), ("--layers", 1), ("--context", 4), ("--experts", 2),
              ("--hidden", 3), ("--batch", 1), ("--eval-tokens", 16), ("--threads", 1),
              ("--steps", 1), ("--data", "text"), ("--out", "run"), ("--overwrite", None)])
passed = failed = 0


lock = threading.Lock()


def check(right, name, *seen):
    global passed, failed
    with lock:
        passed, failed = passed + bool(right), failed + (not right)
        if not right:
            print("FAILED %s%s" % (name[-200:], "".join("\n   %.300r" % (s,) for s in seen)),
                  flush=True)
    return right


# --- running a program ----------------------------------------------------------------------------

def limit_memory():
    """Of this process, and so of all that it starts."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not SANITIZED:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


class Ended:
    """A run that is over: status (negative: a signal; None: a timeout), out, error, as bytes."""

    def __init__(self, program, arguments):
        self.name = "%s %s" % (os.path.basename(program), " ".join(
            a if isinstance(a, str) else os.fsdecode(a) for a in arguments))
        self.name = self.name.encode("ascii", "backslashreplace").decode()
        process = subprocess.Popen([program] + list(arguments), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            self.out, self.error = process.communicate(timeout=SECONDS)
            self.status = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            self.out, self.error = process.communicate()
            self.status = None


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


def right_manner(run, statuses, culprit):
    """What must be so of every run. culprit: one of these is named where it fails."""
    program = run.name.split()[0]
    check(run.status in statuses, "%s: status %s, not %s" % (run.name, run.status, statuses),
          run.error)
    if run.status == 0:   # nothing on standard error but warnings, each with a hint or without
        warnings = re.fullmatch(rb"(train_tiny: warning: [^\n]+\n(\([^\n]+\)\n)?)*", run.error)
        return check(warnings, "%s: says nothing but warnings" % run.name, run.error)
    lines = run.error.split(b"\n")
    ok = check(lines[-1] == b"" and len(lines) in (2, 3)
               and (len(lines) == 2 or lines[1].startswith(b"(")), "%s: one line" % run.name,
               run.error)
    ok &= check(run.error.startswith(program.encode() + b": "), "%s: names itself" % run.name,
                run.error)
    ok &= check(len(run.error) < 2500, "%s: a line of %d" % (run.name, len(run.error)))
    ok &= check(not any(c < 32 and c != 10 or c == 127 for c in run.error),
                "%s: control characters" % run.name, run.error)
    ok &= check(any(os.fsencode(c) in run.error for c in culprit),
                "%s: names one of %s" % (run.name, culprit), run.error)
    return ok & check(b"final:" not in run.out and b"nll" not in run.out,
                      "%s: claims success" % run.name, run.out)


# --- the table of options, as --help prints it ----------------------------------------------------

class Option:
    """kind: "flag", "text", "choice", "whole", "real"; of the last two: low, high, open ends."""

    def __init__(self, name, what, rest):
        self.name, self.words = name, what.split("|") if "|" in what else []
        self.kind = {"": "flag", "N": "whole", "X": "real"}.get(
            what, "choice" if self.words else "text")
        found = re.search(r" in ([\[(])(\S+), (\S+)([\])])$", rest)
        if self.kind in ("whole", "real"):
            check(found, "%s: its range is printed" % name, rest)
            number = int if self.kind == "whole" else float
            self.low, self.high = number(found.group(2)), number(found.group(3))
            self.above, self.below = found.group(1) == "(", found.group(4) == ")"
            for seen, right in zip((self.low, self.high), ENDS.get(name, (None, None))):
                check(right is None or seen == right, "%s: its range" % name, seen, right)
        else:
            check(not found, "%s: has no range" % name, rest)

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


def options_of(program):
    run = Ended(program, ["--help"])
    check(run.status == 0 and run.error == b"", "%s: works" % run.name, run.error)
    lines = run.out.decode().replace("\n                       ", " ").split("\n")
    found = []
    for line in lines:
        option = re.match(r"  (--?[a-z0-9-]+) (?:(N|X|[A-Z]+2?|\S+\|\S+) )?(.*)$", line)
        if option and option.group(1) != "--help":
            found.append(Option(option.group(1), option.group(2) or "", option.group(3)))
        check(option or not line.startswith("  -"), "%s: can be read" % run.name, line)
    check(run.out.decode().startswith("usage: %s" % os.path.basename(program)), "usage")
    return found


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


# What a range must be, whatever the program thinks: the ends that the model's mathematics, the
# papers or the header's limits give.
ENDS = {"--width": (2, 1 << 20), "--layers": (1, 1024), "--context": (1, 1 << 20), "--k": (1, 256),
        "--experts": (1, 256), "--p": (1e-9, 1), "--top-p": (1e-9, 1), "--seed": (0, (1 << 64) - 1),
        "--threads": (1, 1024), "--pp": (0, 1e6), "--lb": (0, 1e6), "--ent": (0, 1e6),
        "--z": (0, 1e6), "--dropout": (0, .9), "--steps": (0, None), "--batch": (1, 1 << 24),
        "--accum": (1, None), "--lr": (0, None), "--min-lr": (0, None), "--warmup": (0, None),
        "--weight-decay": (0, None), "--clip": (0, None), "--beta1": (0, None),
        "--beta2": (0, None), "--temperature": (0, None), "--top-k": (0, None), "-n": (0, None)}


# --- each option, each value ----------------------------------------------------------------------

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
    if name in ("--lr", "--weight-decay") and n > 100:
        return ["lr"]
    return [name] if value in ("cuda", "bf16") else []


def too_long(name, value):
    """In range, and not to be waited for (or not with a limit on memory: so many stacks)."""
    most = {"--steps": 100, "--accum": 100, "-n": 10000, "--threads": 8, "--layers": 64,
            "--experts": 64, "--width": 2000, "--batch": 10000, "--context": 1800, "--hidden": 2000}
    n = number(value)
    if name in ("--width", "--batch", "--context", "--hidden") and not SANITIZED:
        return False                                       # these must be refused
    return n > most.get(name, float("inf"))


def train(option=None, value=None, **more):
    """The arguments of a run of a moment, but for one option."""
    arguments = dict(MODEL)
    arguments.pop(option, None)
    arguments.update(("--" + k.replace("_", "-"), v) for k, v in more.items())
    given = [str(x) for pair in arguments.items() for x in pair if x is not None]
    if option:
        given.append(option)
    return given + ([value] if value is not None else [])


def glue(arguments):
    """The last option and its value in one word."""
    name, value = os.fsencode(arguments[-2]), os.fsencode(arguments[-1])
    return arguments[:-2] + [name + (b"=" if name.startswith(b"--") else b"") + value]


def try_values(program, o, number):
    """One option with all its values, apart and glued in turn, over an older run."""
    older = "older%d" % number
    if program == TRAIN:
        shutil.copytree("older", older)
    before = state(older)
    for turn, value in enumerate(values_of(o)):
        if o.name == "-n" and value == "" or b"\0" in os.fsencode(value):
            turn = 0                                       # "-n" and "" are no one word
        if o.name in ("--routes", "--page"):               # files that no other test may meet
            os.makedirs("made", exist_ok=True)
            value = os.fsdecode(b"made/" + os.fsencode(value))
        good, slow = o.accepts(value), too_long(o.name, value)
        if program == TRAIN:                               # that it is accepted is seen at once
            more = {"data": "nothing"} if good and slow else {}
            if o.name == "--budget":
                more["routing"] = "topp"
            arguments = train(o.name, value, **dict(more, **({} if o.name == "--out" else
                                                             {"out": older})))
        else:
            more = ["--score", "text"] if o.name in WITH_SCORE else ["-n", "2"]
            arguments = ["none" if good and slow else "run", "--threads", "1", *more, o.name, value]
        run = Ended(program, glue(arguments) if turn % 2 else arguments)
        limits = impossible(o.name, value) if good and (program == TRAIN or o.kind == "choice") \
            else []
        if o.kind == "text":
            check_text(program, o, value, run)
        elif not good:
            right_manner(run, [2], [o.name])
        elif slow:
            right_manner(run, [1, 2] if limits else [1], ["nothing", "none"] + limits)
        else:
            right_manner(run, [0, 1] if limits == ["lr"] else [1, 2] if limits else [0], limits)
        if program == TRAIN:
            after = state(older)
            if run.status:
                check(before == after, "%s: the older run is whole" % run.name)
            before = after
            check(good or not run.out, "%s: had begun" % run.name, run.out)


def check_text(program, o, value, run):
    """Any text is a value; what may then be wrong is known of each."""
    names = {"--data": ["cannot read", "is a directory", "bytes"], "--out": ["cannot", "--out", "too long"],
             "--sizes": ["--sizes"], "--prompt": ["--prompt"], "--score": ["cannot read"],
             "--routes": ["cannot write", "too long"], "--page": ["cannot write", "too long"],
             "--export-mixtral": ["cannot", "too long", "is the model", "holds a run"]}
    right_manner(run, [0, 1, 2], names.get(o.name, [o.name]))
    if o.name == "--sizes":
        check((run.status == 0) == (value in SIZES), run.name, run.status, run.error)
        check(run.status in (0, 2), run.name, run.error)
    if o.name == "--data" or o.name == "--score":
        check(run.status == 1, run.name, run.error)        # there are no such files


WITH_SCORE = ("--routes", "--page", "--devices")
SIZES = ("1,5",)                                           # those of values_of that are two ratios


def try_flag(program, o):
    base = train() if program == TRAIN else ["run", "-n", "2", "--threads", "1"]
    if o.name == "--resume":
        right_manner(Ended(program, base + [o.name]), [2], ["--overwrite"])
        base.remove("--overwrite")
        right_manner(Ended(program, base + [o.name]), [0], [])
    elif o.name == "--overwrite":
        base.remove("--overwrite")
        before = state("run")
        right_manner(Ended(program, base), [1], ["--out run"])
        check(state("run") == before, "a run without --overwrite changes nothing")
        right_manner(Ended(program, base + [o.name]), [0], [])
    elif o.name == "--show-tiles":
        right_manner(Ended(program, base + [o.name]), [2], [o.name])
        right_manner(Ended(program, base + [o.name, "--score", "text"]), [0], [])
    else:
        right_manner(Ended(program, base + [o.name]), [0], [])
    for value in ("", "1", "yes", "x" * LONG):
        right_manner(Ended(program, base + [o.name + "=" + value]), [2], [o.name])
    right_manner(Ended(program, base + [o.name, "1"]), [2], ["1: "])


# --- an option given twice ------------------------------------------------------------------------

TWO = {"--data": ("text", "other"), "--out": ("out1", "out2"), "--width": (4, 8),
       "--layers": (1, 2), "--heads": (1, 2), "--context": (4, 5), "--experts": (2, 3),
       "--hidden": (3, 5), "--sizes": ("3,1", "1,1"), "--routing": ("topk", "topp"), "--k": (1, 2),
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
       "--balance": ("off", "work"), "--balance-rate": (0, 1)}
TOGETHER = {"--budget": ["--routing", "topp"], "--balance-rate": ["--balance", "tokens"],
            "--p": ["--routing", "topp"], "--muon-lr": ["--optimizer", "muon"],
            "--export-mixtral": ["-n", "5"], "--backend": [], "--precision": []}


def outcome(program, arguments, made):
    """What can be seen of a run, without times: what it said, and the files that it made."""
    for directory in made:
        shutil.rmtree(directory, ignore_errors=True)
    run = Ended(program, arguments)
    right_manner(run, [0], [])
    said = re.sub(rb"[\d.]+ tok/s, [\d.]+ s$|step .* tok/s.*|run .*", b"", run.out,
                  flags=re.MULTILINE)
    rows = []
    for directory in made:
        try:
            with open(directory + "/log.csv") as log:
                rows.append([r.split(",")[:2] + r.split(",")[3:] for r in log])
        except OSError:
            pass
    return run, [said, rows] + [[d] + [s for s in state(d) if s[0] not in (
        "log.csv", "training.safetensors")] for d in made]


def try_twice(program, o, number):
    if o.name in ("--routes", "--page"):
        base = ["run", "--threads", "1", "--score", "text", o.name]
        right_manner(Ended(program, base + [TWO[o.name][0], o.name, TWO[o.name][1]]), [0], [])
        check([os.path.exists(x) for x in TWO[o.name]] == [False, True], "%s twice" % o.name)
        os.remove(TWO[o.name][1])
        return
    a, b = (str(v) for v in TWO[o.name])
    out = "twice%d" % number
    if program == TRAIN:
        base = train(out=out, steps=5, eval_every=2, lr=.05, warmup=1, ent=0)
        if o.name in ("--gate", "--k"):
            base += ["--experts", "3"]
        made = [out] if o.name != "--out" else ["out1", "out2"]
    else:
        base, made = ["run", "--threads", "1", "-n", "40"], []
        if o.name == "--score":
            base = base[:3]
        if o.name == "--devices":
            base = base[:3] + ["--score", "text"]
        if o.name == "--export-mixtral":
            base, made = ["mixtral"], ["m1", "m2"]
    base += TOGETHER.get(o.name, []) if o.name != "--export-mixtral" else []
    run, first = outcome(program, base + [o.name, a], made)
    second = outcome(program, base + [o.name, b], made)[1]
    both = outcome(program, base + [o.name, a, o.name + ("=" if o.name[1] == "-" else "") + b]
                   if o.name != "-n" else base + ["-n", a, "-n" + b], made)[1]
    swapped = outcome(program, base + [o.name, b, o.name, a], made)[1]
    # (the place of a moment's save is not to be seen afterwards)
    check(first != second or o.name in ("--save-every", "--threads"), "%s: %s and %s differ"
          % (o.name, a, b), first)
    check(both == second and swapped == first, "%s twice: the last one counts" % o.name, run.name)
    for program_name in made:
        shutil.rmtree(program_name, ignore_errors=True)


# --- the command line as such ---------------------------------------------------------------------

def try_lines(program, options):
    base = train() if program == TRAIN else ["run", "-n", "2", "--threads", "1"]
    names = [o.name[2:] for o in options if o.name[1] == "-"] + ["help"]
    for o in options:
        if o.kind != "flag":                               # without its value
            right_manner(Ended(program, base + [o.name]), [2], [o.name])
    for name in names:                                     # cut anywhere
        kind = dict((o.name, o) for o in options).get("--" + name)
        for n in range(1, len(name)):
            cut = "--" + name[:n]
            meant = [x for x in names if x.startswith(name[:n])]
            if name[:n] in names or meant == ["help"]:
                continue
            run = Ended(program, base + [cut + ("" if kind and kind.kind == "flag" else "=x")])
            if len(meant) > 1:
                right_manner(run, [2], [cut])
            elif kind.kind == "flag":
                check(run.status in (0, 2), run.name, run.error)    # --show-tiles needs --score
            elif kind.kind != "text":                      # (any text is a value)
                right_manner(run, [2], ["--" + meant[0]])
    unknown = ["--bogus", "--bogus=1", "--", "-x", "-", "--=1", "---", "-\n", "--st eps", "-n1x",
               "--" + "y" * LONG, b"--\xff", b"-\xff", b"-\xffabc", "--help=1", "-Wstep", "-:",
               "-?", "--%s%n", "-1", "--Steps", "-steps", "--bo\ngus", "--bo\x1b[0mgus"]
    for word in unknown:
        run = Ended(program, base + [word])
        if word == "--":
            right_manner(run, [0], [])
        else:
            shown = os.fsdecode(word).split("=")[0][:99]
            shown = "-n" if word == "-n1x" and program == WRITE else shown
            named = re.sub(r"[\n\x1b]", "?", shown)
            right_manner(run, [2], [named, named[:2] + ":", named[:2]] if named[:2] != "--"
                         else [named])
    for junk in (["junk"], [""], ["\n"], [b"\xff"], ["x" * LONG], ["--", "--steps"], ["--", "-"]):
        right_manner(Ended(program, base + junk), [2], [
            re.sub("\n", "?", os.fsdecode(junk[-1])[:99])])
    if program == WRITE:
        right_manner(Ended(program, []), [2], ["which model"])
        right_manner(Ended(program, ["--"]), [2], ["which model"])
        right_manner(Ended(program, ["--", "run", "-n"]), [2], ["-n"])
        right_manner(Ended(program, ["-n", "3", "--", "run"]), [0], [])
        for bad in ("none", "text", "", "\nnone", b"\xff", "x" * LONG, "/dev/null"):
            right_manner(Ended(program, [bad]), [1], [
                re.sub("\n", "?", os.fsdecode(bad)[:99]) + "/", "too long"])
    for line in (["--help"], base + ["--help"], ["--help", "--bogus"], ["--hel"],
                 ["--help", "--help"]):
        run = Ended(program, line)
        check(run.status == 0 and run.out.startswith(b"usage: ") and not run.error, run.name)
    for line in (["--bogus", "--help"], base + [options[-1].name, "x", "--help"]):
        right_manner(Ended(program, line), [2], ["--bogus", options[-1].name])


def try_together():
    """In range each, impossible together: refused at once, by what they need."""
    if SANITIZED:
        return
    older = state("older")
    cases = [["--width", "1048576"], ["--width", "1048576", "--layers", "1024"],
             ["--layers", "1024", "--width", "4096"], ["--batch", "16777216", "--context", "1"],
             ["--batch", "8388608", "--context", "1"], ["--context", "1048576"],
             ["--hidden", "1048576", "--experts", "1", "--width", "65536"],
             ["--hidden", "1048576", "--experts", "2"], ["--experts", "256", "--batch", "2000000"],
             ["--heads", "524288", "--width", "1048576"], ["--heads", "3"], ["--width", "6",
             "--heads", "2"], ["--k", "3"], ["--sizes", "1,2,3"], ["--sizes", "modse", "--experts",
             "3"], ["--hidden", "1", "--experts", "256", "--sizes", "1,2"], ["--lr", "0.1",
             "--min-lr", "0.2"], ["--width", "2000", "--layers", "30"],
             ["--width", "2000", "--layers", "9"],         # each array fits, not all of them
             ["--precision", "bf16"], ["--optimizer", "muon", "--backend", "cuda"],
             ["--resume", "--batch", "16777216"], ["--resume", "--width", "8"],
             ["--resume", "--seed", "3"], ["--resume", "--k", "1"]]
    for case in cases:
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        experts = {"experts": 3} if "--resume" in case else {}         # as the older run
        line = train(out="older", **experts) + case
        if "--resume" in case:
            line.remove("--overwrite")
        run = Ended(TRAIN, line)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        named = [c for c in case if c.startswith("--")] + ["memory", "context", "cuda", "batches"]
        right_manner(run, [1, 2], named)
        check(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime < 1,
              "%s: refused at once" % run.name)
        check(state("older") == older, "%s: the older run is whole" % run.name)
    # the largest resident size of any child so far: nothing was touched before it was refused
    check(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 600 << 10, "memory touched",
          resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def try_learning():
    """Values that break learning: it goes on with plain numbers, or stops, says why, and what was
    saved is finite."""
    for number, values in enumerate([
            "--lr 10", "--lr 1e3", "--lr 1e10", "--lr 1e20", "--lr 1e30", "--lr 1e38", "--lr 1e300",
            "--weight-decay 1e10", "--weight-decay 1e38", "--weight-decay 1e300", "--clip 1e-30",
            "--clip 1e-300", "--clip 1e300", "--clip 0", "--beta1 0 --beta2 0",
            "--beta1 0.999999 --beta2 0.999999", "--lr 0", "--lr 1e-30", "--lr 1e-300",
            "--pp 1e6 --lb 1e6 --ent 1e6 --z 1e6", "--z 1e6 --clip 0 --lr 1",
            "--dropout 0.9 --lr 1", "--noisy --lr 100", "--routing topp --p 1e-9 --lr 1",
            "--routing topp --p 1",
            "--optimizer muon --muon-lr 1e10", "--optimizer muon --muon-lr 1e300", "--k 1 --lr 100",
            "--experts 64 --k 64 --lr 10"]):
        for text in ("text", "same"):
            out = "learning%d%s" % (number, text)
            run = Ended(TRAIN, train(out=out, steps=30, warmup=1, save_every=1, eval_every=20,
                                     data=text) + values.split())
            right_manner(run, [0, 1], ["step "])
            if run.status:
                check(re.search(rb"step \d+: .*(finite|is -?nan|is -?inf|gives NaN)", run.error),
                      run.name, run.error)
            numbers = re.findall(rb"(?:loss|val_loss) (\S+)", run.out)
            check(not any(b"n" in x for x in numbers), "%s: no number" % run.name, numbers)
            if not os.path.exists(out + "/config.json"):
                continue
            for directory in [out] + [out + "/best"] * os.path.exists(out + "/best"):
                run = Ended(WRITE, [directory, "--score", text, "--threads", "1"])
                right_manner(run, [0, 1], ["the loss", "gives NaN"])
                # one step too many can be saved, before anything has used its weights
                check(run.status == 0 or directory == out, run.name, run.error)
            with open(out + "/log.csv") as log:
                check(not re.search("nan|inf", log.read()), "%s: log.csv" % out)
            with open(out + "/model.safetensors", "rb") as f:
                data = f.read()
            at = 8 + int.from_bytes(data[:8], "little")
            numbers = struct.unpack("<%df" % ((len(data) - at) // 4), data[at:])
            check(all(map(math.isfinite, numbers)), "%s: weights are finite" % out)
            shutil.rmtree(out)


def prepare():
    with open("text", "w") as f:
        f.write("To be, or not to be, that is the question.\n" * 50)
    with open("other", "w") as f:
        f.write("To be, or not to be, that is no question.\n" * 50)
    with open("same", "w") as f:
        f.write("a" * 2000)
    with open("text") as f:
        check(len(f.read()) == 2150, "the text")
    for out in ("run", "older", "mixtral"):
        more = dict(experts=3) if out == "older" else {}
        run = Ended(TRAIN, train(out=out, **more))
        right_manner(run, [0], [])


def main():
    here = os.getcwd()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None    # a disk takes minutes
    directory = tempfile.mkdtemp(prefix="hmoe-options-", dir=memory)
    limit_memory()
    os.environ["LC_ALL"] = "C"
    try:
        os.chdir(directory)
        prepare()
        jobs, both = [], [(p, options_of(p)) for p in (WRITE, TRAIN)]
        check(len(both[0][1]) > 10 and len(both[1][1]) > 35, "options are found")
        for program, options in both:
            for o in options:
                number = len(jobs)
                jobs.append((try_flag, program, o) if o.kind == "flag"
                            else (try_values, program, o, number))
                if o.name in TWO:
                    jobs.append((try_twice, program, o, number))
                else:
                    check(o.kind == "flag" or o.name in ("--backend", "--precision"),
                          "%s: has two values in this test" % o.name)
            jobs.append((try_lines, program, options))
        jobs.append((try_learning,))
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(*job) for job in jobs]:
                if future.exception():     # a job that breaks is a failure of its own
                    check(False, "a job: %r" % future.exception())
        try_together()
    finally:
        os.chdir(here)
        shutil.rmtree(directory, ignore_errors=True)
    print("options: %d passed, %d failed" % (passed, failed))
    return failed != 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
