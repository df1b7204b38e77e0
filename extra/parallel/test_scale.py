#!/usr/bin/env python3
"""test_scale.py - the model on paper of scale.py: what it says of messages and bytes against what
1, 2 and 4 processes of mpi.c count, of parameters, tokens and work against `generate --devices`, of
sums against a walk over each message. Needs numpy, and for the first an MPI."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests"))
from harness import check, done  # noqa: E402

os.chdir(ROOT)
sys.dont_write_bytecode = True
here = tempfile.mkdtemp(prefix="hmoe-scale-")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
os.environ.update(BUILD=here, DATA=os.path.join(here, "input"), OMP_NUM_THREADS="1", MPI_DIR=here,
                  OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
BIN, SCALE = os.path.join(".", os.environ.get("BIN", "")), "extra/parallel/scale.py"
try:
    import numpy as np
    import matplotlib  # noqa: F401
except ImportError as error:
    print("no %s here: skipped (make scale installs it)" % error.name)
    shutil.rmtree(here)
    done("test_scale")
import scale     # noqa: E402


def run(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=300)


def counted():
    """Every number of every process, for each kind of traffic."""
    if not shutil.which("mpicc") or not shutil.which("mpirun"):
        print("no mpicc and mpirun here: what processes count is not compared")
        return
    program = os.path.join(here, "mpi")
    built = run("mpicc", "-std=c99", "-O2", "-I.", "-o", program, "extra/parallel/mpi.c", "-lm")
    if not check("mpi.c is built", built.returncode == 0, built.stderr):
        return
    many = ["--oversubscribe", "--bind-to", "none"] if "Open MPI" in run(
        "mpirun", "--version").stdout else []
    for R in (1, 2, 4):
        for D in (d for d in (1, 2, 4) if d <= R):
            for number, rule in enumerate(("pairs", "contiguous")):
                sizes = "modse" if D == 2 else "arithmetic"
                name = "%s, %d of %d ranks, %s: " % (sizes, D, R, rule)
                seen = run("mpirun", *many, "-n", str(R), program, "counts", sizes, str(D),
                           str(number))
                compare(name, seen, R, D, rule)


def compare(name, seen, R, D, rule):
    lines = [line.split() for line in seen.stdout.splitlines()]
    of = lambda word: [[int(x) for x in line[1:]] for line in lines if line[0] == word]
    if not check(name + "runs", seen.returncode == 0 and len(of("counted")) == 4 * R, seen):
        return
    V, C, L, T = of("model")[0][:4]
    shape = scale.Shape("", V, C, L, T, of("model")[0][4:])
    counts = np.zeros((R, L, shape.E), int)
    for rank, layer, *rows in of("routes"):
        counts[rank, layer] = rows
    traffic = scale.Traffic(shape, counts, scale.place(shape.H, D, rule), D=D)
    for rank, kind, messages, size in of("counted"):
        paper = traffic.messages[scale.KINDS[kind]][rank], traffic.bytes[scale.KINDS[kind]][rank]
        check("%srank %d, %s" % (name, rank, scale.KINDS[kind]), paper == (messages, size),
              "on paper %s, counted %s" % (paper, (messages, size)))


def sums():
    """The slices of 1, 3, 1,000 and 600,000 numbers over 7 ranks, message by message."""
    for n in (1, 3, 1000, 600000):
        R, messages, sent = 7, np.zeros(7, int), np.zeros(7, int)
        for at in range(0, n, 262144):
            N = min(262144, n - at)
            part = [N * (r + 1) // R - N * r // R for r in range(R)]
            for r in range(R):
                for other in range(R):
                    if other != r:
                        messages[r] += (part[other] > 0) + (part[r] > 0)
                        sent[r] += 4 * (part[other] + part[r])
        shape = scale.Shape("", 1, 1, 1, 1, [1, 1])
        traffic = scale.Traffic(shape, np.zeros((R, 1, 2), int), np.zeros(2, int), 1, np.inf, 1)
        before = traffic.messages["rows"].copy(), traffic.bytes["rows"].copy()
        waited = traffic.seconds["rows"]
        traffic.sum("rows", R, np.arange(R), np.full(R, n), 4)
        check("a sum of %d" % n, (traffic.messages["rows"] - before[0] == messages).all()
              and (traffic.bytes["rows"] - before[1] == sent).all(), (traffic.messages, messages))
        check("a sum of %d: the time" % n, traffic.seconds["rows"] - waited == messages.max())


def devices():
    """generate, in C, adds up what a trained toy's experts hold and do."""
    with open("hmoe.h", "rb") as text, open(os.environ["DATA"], "wb") as copy:
        copy.write(text.read()[:120000])
    out, table = os.path.join(here, "out"), os.path.join(here, "routes")
    made = run(BIN + "train_tiny", "--data", os.environ["DATA"], "--out", out, "--steps", "12",
               "--eval-every", "12", "--eval-tokens", "200", "--batch", "4")
    check("a toy is trained", made.returncode == 0, made.stderr)
    for D in (2, 4):
        seen = run(BIN + "generate", out + "/best", "--score", os.environ["DATA"], "--routes",
                   table, "--devices", str(D)).stdout
        rows = scale.routes(table, 8)
        shape = scale.SHAPES[0]
        for rule in ("pairs", "contiguous"):
            words = re.search(r"%s: largest over mean: parameters (\S+) tokens (\S+) work (\S+)"
                              % rule, seen)
            paper = scale.balance(shape, scale.parts_of(rows, 1000, len(rows) // 1000, 4),
                                  scale.place(shape.H, D, rule), D)
            near = len(rows) % 1000 / len(rows) + 1e-6       # what the last part leaves out
            check("%d devices, %s" % (D, rule), words and all(
                abs(float(w) - p) <= near for w, p in zip(words.groups(), paper)), (seen, paper))
            check("%d devices, %s: parameters" % (D, rule),
                  words and abs(float(words[1]) - paper[0]) < 1e-6, (seen, paper))


def whole():
    """The program: a table and a picture, and one line about what it cannot use."""
    said = run(sys.executable, SCALE, "--steps", "4", "--speed", "50", "--update", "1")
    check("a table", said.returncode == 0 and len(re.findall(
        r"^ +\d+ +[124] .*\|", said.stdout, re.M)) == 72, said.stderr + said.stdout[:500])
    with open(os.path.join(here, "scale.svg"), encoding="utf-8") as picture:
        check("a picture", "</svg>" in picture.read())
    bad = run(sys.executable, SCALE, "--bandwidth", "0")
    check("no bandwidth", bad.returncode == 2 and "--bandwidth 0: must be above" in bad.stderr, bad)


def by_hand():
    """The seconds of few rows: between two ranks; and of all four to the first."""
    shape = scale.Shape("", 1, 10, 1, 1, [6, 2], tokens=3)
    counts = np.array([[[1, 2]], [[3, 0]]])            # rank 0 sends 2 rows to 1, rank 1 sends 3
    machine = dict(latency=1.0, bandwidth=40.0, speed=180.0, update=0.0)
    parts, _ = scale.predict(shape, counts, 2, "contiguous", machine)
    check("rows: there and back, twice", abs(parts["rows"] - 4 * (1 + 3 * 40 / 40)) < 1e-9, parts)
    check("work: of the busier", abs(parts["work"] - 24 - 3 * shape.flops_shared() / 180) < 1e-9,
          parts)
    shape = scale.Shape("", 1, 10, 1, 1, [4, 3, 2, 1], tokens=1)
    counts = np.array([[[1, 0, 0, 0]]] * 4)            # there, who gets three rows is the last
    parts, _ = scale.predict(shape, counts, 4, "contiguous", machine)
    check("rows: of who gets most", abs(parts["rows"] - 2 * (3 + (3 + 3))) < 1e-9, parts)


try:
    counted()
    sums()
    by_hand()
    devices()
    whole()
finally:
    shutil.rmtree(here)
done("test_scale")
