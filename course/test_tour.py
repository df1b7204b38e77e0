#!/usr/bin/env python3
"""test_tour.py - tests TOUR.md. Every function that it names exists. Its headings in capitals are
sections of hmoe.h, in the same order. Every command prints the output that TOUR.md shows, and every
number with decimals is part of such an output. The derivations agree with central differences. The
links in all texts of the course lead to files.

A command is an indented line that begins with "$ "; a line with "> " continues it. The lines up to an
empty line or the next command are its output. "..." stands for any lines. Numbers must agree to one
unit of the last place but one, because the last place depends on the compiler. BIN is the directory
of the programs."""

import glob
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COURSE = os.path.join(ROOT, "course")
sys.path.insert(0, os.path.join(ROOT, "tests"))
from harness import check, done  # noqa: E402

BIN = os.path.abspath(os.path.join(ROOT, os.environ.get("BIN") or ".", "train_tiny"))


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as f:
        return f.read()


TOUR, HEADER = read("course/TOUR.md"), read("hmoe.h")
PLACEMENT = read("extra/parallel/hmoe_placement.h")


# --- names ----------------------------------------------------------------------------------------

def names():
    found = set(re.findall(r"\b(?:hmoe|HMOE)_\w+", TOUR)) - {"hmoe_placement"}
    check("it names functions of the header", len(found) > 40, len(found))
    for name in sorted(found):
        exists = r"^[a-zA-Z][\w \t*]*\b%s\(|^(?:typedef )?(?:struct|enum) %s\b|\b%s\[|\b%s\b" % (
            name, name, name, name if name.isupper() else "(?!)")
        check("%s is in hmoe.h" % name, re.search(exists, HEADER + PLACEMENT, re.M))
    rooms = [room for line in re.findall(r"^## ([A-Z][A-Z ,]+)$", TOUR, re.M)
             for room in line.split(", ")]
    places = [m.start() for room in rooms for m in re.finditer(r"^   %s - " % room, HEADER, re.M)]
    check("its headings are sections of hmoe.h", len(places) == len(rooms) > 10, (rooms, places))
    check("they are in the same order", places == sorted(places), places)
    part = HEADER[HEADER.index("PART ONE - "):HEADER.index("PART TWO - ")]
    for room in re.findall(r"^   ([A-Z][A-Z ]+) - ", part, re.M):
        check("it has the section %s of PART ONE" % room, room in rooms)
    for path in sorted(glob.glob(os.path.join(COURSE, "**", "*.md"), recursive=True)):
        for link in re.findall(r"\]\(([^)#]+)\)", read(path)):
            check("link to %s in %s" % (link, os.path.relpath(path, ROOT)),
                  os.path.exists(os.path.join(os.path.dirname(path), link)))


# --- commands -------------------------------------------------------------------------------------

def commands():
    """[(command, lines of output)]"""
    found, inside = [], False
    for line in TOUR.splitlines():
        code = line[4:] if line.startswith("    ") else None
        if code is None:
            inside = False
        elif code.startswith("$ "):
            found.append([code[2:], []])
            inside = True
        elif inside and code.startswith("> "):
            found[-1][0] += "\n" + code[2:]
        elif inside:
            found[-1][1].append(code)
    return found


NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def same_line(seen, said):
    if NUMBER.sub("#", seen) != NUMBER.sub("#", said):
        return False
    for a, b in zip(NUMBER.findall(seen), NUMBER.findall(said)):
        places = len(b.partition(".")[2])
        if abs(float(a) - float(b)) > (1.001 * 10 ** (1 - places) if places else 0):
            return False
    return True


def same(seen, said):
    """True if the lines match; "..." matches any number of lines."""
    if not said:
        return not seen
    if said[0] == "...":
        return any(same(seen[i:], said[1:]) for i in range(len(seen) + 1))
    return bool(seen) and same_line(seen[0], said[0]) and same(seen[1:], said[1:])


def run_commands():
    here = tempfile.mkdtemp(prefix="hmoe-tour-")
    try:
        for name in ("LICENSE", "hmoe.h"):
            shutil.copy(os.path.join(ROOT, name), here)
        os.symlink(BIN, os.path.join(here, "train_tiny"))
        for command, said in commands():
            r = subprocess.run(command, shell=True, cwd=here, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, encoding="utf-8", timeout=300)
            check("$ %s" % command, r.returncode == 0 and said
                  and same(r.stdout.splitlines(), said), "printed:\n" + r.stdout)
    finally:
        shutil.rmtree(here)
    printed = "\n".join(line for _, said in commands() for line in said)
    prose = re.sub(r"^    .*$", "", TOUR, flags=re.M)
    for number in re.findall(r"\d+\.\d{2,}|\b\d{3,}\b", prose):
        check("the number %s comes out of a command" % number, number in printed)


# --- the derivations of TOUR.md -------------------------------------------------------------------

def softmax(r):
    top = [math.exp(x - max(r)) for x in r]
    return [x / sum(top) for x in top]


def gradient(f, x):
    """By central differences."""
    result = []
    for i in range(len(x)):
        up, down = list(x), list(x)
        up[i], down[i] = up[i] + 1e-5, down[i] - 1e-5
        result.append((f(up) - f(down)) / 2e-5)
    return result


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def agree(name, derived, f, x):
    seen = gradient(f, x)
    check("derivation of %s" % name, all(abs(a - b) < 1e-7 for a, b in zip(derived, seen))
          and len(derived) == len(seen) and max(map(abs, seen)) > 1e-3, (derived, seen))


def through_softmax(P, dP):
    return [P[e] * (dP[e] - dot(dP, P)) for e in range(len(P))]


def derivations():
    draw = random.Random(1)
    numbers = lambda n: [draw.gauss(0, 1) for _ in range(n)]   # noqa: E731
    E, C = 5, 6
    r, c, x, w, dy = numbers(E), numbers(E), numbers(C), numbers(C), numbers(C)
    P = softmax(r)
    agree("softmax", through_softmax(P, c), lambda r: dot(c, softmax(r)), r)
    S = [1, 3, 4]

    def gates(r):
        chosen = [softmax(r)[e] for e in S]
        return [p / sum(chosen) for p in chosen]
    g, dg, s = gates(r), numbers(3), sum(P[e] for e in S)
    dP = [0.0] * E
    for i, e in enumerate(S):
        dP[e] = (dg[i] - dot(dg, g)) / s
    agree("renormalised gates", through_softmax(P, dP), lambda r: dot(dg, gates(r)), r)
    check("a single renormalised gate has no gradient", (dg[0] - dg[0] * 1) / s == 0)
    H, f = [3, 5, 8, 2, 2], [0.5, 0.25, 0.75, 0, 0.5]
    N, other = 2, softmax(numbers(E))
    for name, M in ("balance", f), ("P-Penalty", [f[e] * H[e] / (sum(H) / E) for e in range(E)]):
        agree(name + ", slope", [E * M[e] for e in range(E)], lambda Phat: E * dot(M, Phat), P)
        agree(name + ", dr", through_softmax(P, [E * M[e] / N for e in range(E)]),
              lambda r: E * sum(M[e] * (softmax(r)[e] + other[e]) / N for e in range(E)), r)
    h = -sum(p * math.log(p) for p in P)
    agree("entropy", [-p * (math.log(p) + h) for p in P],
          lambda r: -sum(p * math.log(p) for p in softmax(r)), r)
    lse = lambda r: math.log(sum(map(math.exp, r)))            # noqa: E731
    agree("z-loss", [2 * lse(r) * p for p in P], lambda r: lse(r) ** 2, r)
    agree("cross-entropy", [p - (e == 2) for e, p in enumerate(P)], lambda r: lse(r) - r[2], r)

    rrms = lambda x: (dot(x, x) / C + 1e-5) ** -0.5            # noqa: E731
    R = rrms(x)
    n = [v * R for v in x]
    mean = sum(a * b * k for a, b, k in zip(w, dy, n)) / C
    agree("RMSNorm, dx", [R * (w[j] * dy[j] - n[j] * mean) for j in range(C)],
          lambda x: sum(d * a * v * rrms(x) for d, a, v in zip(dy, w, x)), x)
    agree("RMSNorm, dw", [dy[j] * n[j] for j in range(C)],
          lambda w: sum(d * a * v * R for d, a, v in zip(dy, w, x)), w)

    def rope(x, t, hs=C):
        y = list(x)
        for i in range(hs // 2):
            angle = t * 100.0 ** (-2 * i / hs)
            a, b = x[i], x[i + hs // 2]
            y[i] = a * math.cos(angle) - b * math.sin(angle)
            y[i + hs // 2] = b * math.cos(angle) + a * math.sin(angle)
        return y
    agree("RoPE", rope(dy, -3), lambda x: dot(dy, rope(x, 3)), x)
    check("RoPE: only the distance counts",
          abs(dot(rope(x, 7), rope(w, 4)) - dot(rope(x, 5), rope(w, 2))) < 1e-12)

    T, hs = 4, 3
    q, k, v, do = (numbers(T * hs) for _ in range(4))
    row = lambda a, i: a[i * hs:(i + 1) * hs]                  # noqa: E731

    def shares(q, k, i):
        return softmax([dot(row(q, i), row(k, j)) / math.sqrt(hs) for j in range(i + 1)])

    def attention(q, k, v):
        return [sum(p * row(v, j)[m] for j, p in enumerate(shares(q, k, i)))
                for i in range(T) for m in range(hs)]
    out = attention(q, k, v)
    dq, dk, dv = ([0.0] * (T * hs) for _ in range(3))
    for i in range(T):
        for j, p in enumerate(shares(q, k, i)):
            ds = p * (dot(row(do, i), row(v, j)) - dot(row(do, i), row(out, i)))
            for m in range(hs):
                dv[j * hs + m] += p * row(do, i)[m]
                dq[i * hs + m] += ds * row(k, j)[m] / math.sqrt(hs)
                dk[j * hs + m] += ds * row(q, i)[m] / math.sqrt(hs)
    agree("attention, dq", dq, lambda q: dot(do, attention(q, k, v)), q)
    agree("attention, dk", dk, lambda k: dot(do, attention(q, k, v)), k)
    agree("attention, dv", dv, lambda v: dot(do, attention(q, k, v)), v)

    a, b, dh, gate = numbers(C), numbers(C), numbers(C), 0.6
    sigmoid = lambda z: 1 / (1 + math.exp(-z))                 # noqa: E731
    hidden = lambda a, b: [z * sigmoid(z) * u for z, u in zip(a, b)]   # noqa: E731
    agree("SwiGLU, da", [gate * dh[i] * b[i] * sigmoid(a[i]) * (1 + a[i] * (1 - sigmoid(a[i])))
                         for i in range(C)], lambda a: gate * dot(dh, hidden(a, b)), a)
    agree("SwiGLU, db", [gate * dh[i] * a[i] * sigmoid(a[i]) for i in range(C)],
          lambda b: gate * dot(dh, hidden(a, b)), b)
    agree("SwiGLU, dg", [dot(dh, hidden(a, b))], lambda g: g[0] * dot(dh, hidden(a, b)), [gate])


names()
if os.path.exists(BIN):
    run_commands()
else:
    print("no program %s here: commands are skipped" % BIN)
derivations()
done("test_tour")
