"""TOUR.md is right: its names, its order, its links, its derivations, and the output of its
commands.

A command is an indented line that begins with "$ "; a line with "> " continues it. The lines up to
an empty line or the next command are its output. "..." stands for any lines. Numbers must agree to
one unit of the last place but one, because the last place depends on the compiler."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from harness import ROOT, TRAIN

TOUR, HEADER, PLACEMENT = ((ROOT / name).read_text(encoding="utf-8") for name in (
    "course/TOUR.md", "hmoe.h", "extra/parallel/hmoe_placement.h"))
HEADINGS = [section for line in re.findall(r"^## ([A-Z][A-Z ,]+)$", TOUR, re.M)
            for section in line.split(", ")]


# --- names ----------------------------------------------------------------------------------------

def test_every_function_that_it_names_exists():
    found = set(re.findall(r"\b(?:hmoe|HMOE)_\w+", TOUR)) - {"hmoe_placement"}
    assert len(found) > 40

    def exists(name):
        declaration = r"^[a-zA-Z][\w \t*]*\b{0}\(|^(?:typedef )?(?:struct|enum) {0}\b|\b{0}\["
        macro = r"|\b{0}\b" if name.isupper() else ""
        return re.search((declaration + macro).format(name), HEADER + PLACEMENT, re.M)
    assert not [name for name in sorted(found) if not exists(name)]


def test_its_headings_are_sections_of_the_header_in_order():
    places = [m.start() for h in HEADINGS for m in re.finditer(r"^   %s - " % h, HEADER, re.M)]
    assert len(places) == len(HEADINGS) > 10
    assert places == sorted(places)


def test_it_has_all_sections_of_part_one():
    part = HEADER[HEADER.index("PART ONE - "):HEADER.index("PART TWO - ")]
    sections = re.findall(r"^   ([A-Z][A-Z ]+) - ", part, re.M)
    assert sections and set(sections) <= set(HEADINGS)


def test_links_lead_to_files():
    links = [(text, link) for text in (ROOT / "course").rglob("*.md")
             for link in re.findall(r"\]\(([^)#]+)\)", text.read_text(encoding="utf-8"))]
    assert links and not [(str(text), link) for text, link in links
                          if not (text.parent / link).exists()]


# --- commands -------------------------------------------------------------------------------------

def commands():
    """[(command, lines of output)]"""
    found, inside = [], False
    for line in TOUR.splitlines():
        code = line[4:] if line.startswith("    ") else None
        if code is None:
            inside = False
        elif code.startswith("$ "):
            found.append((code[2:], []))
            inside = True
        elif inside and code.startswith("> "):
            found[-1] = (found[-1][0] + "\n" + code[2:], [])
        elif inside:
            found[-1][1].append(code)
    return found


NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def same_line(seen, said):
    if NUMBER.sub("#", seen) != NUMBER.sub("#", said):
        return False
    places = [len(number.partition(".")[2]) for number in NUMBER.findall(said)]
    return all(abs(float(a) - float(b)) <= (1.001 * 10 ** (1 - n) if n else 0)
               for a, b, n in zip(NUMBER.findall(seen), NUMBER.findall(said), places))


def same(seen, said):
    """True if the lines match; "..." matches any number of lines."""
    if not said:
        return not seen
    if said[0] == "...":
        return any(same(seen[i:], said[1:]) for i in range(len(seen) + 1))
    return bool(seen) and same_line(seen[0], said[0]) and same(seen[1:], said[1:])


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What each command did. They run in one directory, because later ones use earlier ones'
    files."""
    if not TRAIN.exists():
        pytest.skip("no program %s" % TRAIN)
    here = tmp_path_factory.mktemp("tour")
    for name in "LICENSE", "hmoe.h":
        shutil.copy(ROOT / name, here)
    (here / "train_tiny").symlink_to(TRAIN)
    return {command: subprocess.run(command, shell=True, cwd=here, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT, encoding="utf-8", timeout=300)
            for command, _ in commands()}


@pytest.mark.parametrize("command, said", commands(), ids=[c for c, _ in commands()])
def test_command_prints_what_the_tour_shows(ran, command, said):
    run = ran[command]
    assert run.returncode == 0, run.stdout
    assert said and same(run.stdout.splitlines(), said), "it printed:\n" + run.stdout


def test_every_number_comes_out_of_a_command():
    printed = "\n".join(line for _, said in commands() for line in said)
    prose = re.sub(r"^    .*$", "", TOUR, flags=re.M)
    numbers = re.findall(r"\d+\.\d{2,}|\b\d{3,}\b", prose)
    assert numbers and not [number for number in numbers if number not in printed]


# --- the derivations of TOUR.md, each with central differences ------------------------------------

E, C, T, HS = 5, 6, 4, 3
draw = np.random.default_rng(1).standard_normal
r, c, x, w, dy = draw(E), draw(E), draw(C), draw(C), draw(C)


def softmax(r):
    p = np.exp(r - np.max(r))
    return p / p.sum()


def through_softmax(P, dP):
    return P * (dP - dP @ P)


P, OTHER = softmax(r), softmax(draw(E))


def is_gradient(derived, f, x):
    """The derived gradient of f at x is that of central differences, which is not zero."""
    seen = np.empty_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i], down[i] = up[i] + 1e-5, down[i] - 1e-5
        seen[i] = (f(up) - f(down)) / 2e-5
    np.testing.assert_allclose(derived, seen, rtol=0, atol=1e-7)
    assert derived.shape == x.shape and abs(seen).max() > 1e-3


def test_softmax():
    is_gradient(through_softmax(P, c), lambda r: c @ softmax(r), r)


def test_renormalised_gates():
    S, dg = [1, 3, 4], draw(3)

    def gates(r):
        return softmax(r)[S] / softmax(r)[S].sum()
    dP = np.zeros(E)
    dP[S] = (dg - dg @ gates(r)) / P[S].sum()
    is_gradient(through_softmax(P, dP), lambda r: dg @ gates(r), r)
    assert (dg[0] - dg[0] * 1) / P[S].sum() == 0, "a single gate, which is 1, has no gradient"


H, F = np.array([3, 5, 8, 2, 2]), np.array([0.5, 0.25, 0.75, 0, 0.5])


@pytest.mark.parametrize("M", [F, F * H / H.mean()], ids=["load balancing", "P-Penalty"])
def test_balance(M):
    is_gradient(E * M, lambda mean: E * M @ mean, P)
    is_gradient(through_softmax(P, E * M / 2), lambda r: E * M @ (softmax(r) + OTHER) / 2, r)


def test_entropy():
    def entropy(r):
        return -softmax(r) @ np.log(softmax(r))
    is_gradient(-P * (np.log(P) + entropy(r)), entropy, r)


def test_z_loss_and_cross_entropy():
    log_sum_exp = np.logaddexp.reduce
    is_gradient(2 * log_sum_exp(r) * P, lambda r: log_sum_exp(r) ** 2, r)
    is_gradient(P - np.eye(E)[2], lambda r: log_sum_exp(r) - r[2], r)


def test_rmsnorm():
    def rrms(x):
        return (x @ x / C + 1e-5) ** -0.5
    R = rrms(x)
    n = x * R
    is_gradient(R * (w * dy - n * (w @ (dy * n)) / C), lambda x: dy @ (w * x * rrms(x)), x)
    is_gradient(dy * n, lambda w: dy @ (w * x * R), w)


def test_rope():
    def rope(x, t):
        angle = t * 100.0 ** (-2 * np.arange(C // 2) / C)
        a, b = np.split(x, 2)
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                               b * np.cos(angle) + a * np.sin(angle)])
    is_gradient(rope(dy, -3), lambda x: dy @ rope(x, 3), x)
    far, near = rope(x, 7) @ rope(w, 4), rope(x, 5) @ rope(w, 2)
    assert far == pytest.approx(near, abs=1e-12), "only the distance of two positions counts"


def test_attention():
    q, k, v, do = draw((4, T, HS))

    def shares(q, k):
        return [softmax(k[:i + 1] @ q[i] / np.sqrt(HS)) for i in range(T)]

    def attention(q, k, v):
        return np.array([p @ v[:i + 1] for i, p in enumerate(shares(q, k))])
    out = attention(q, k, v)
    dq, dk, dv = np.zeros((3, T, HS))
    for i, row in enumerate(shares(q, k)):
        for j, p in enumerate(row):
            ds = p * (do[i] @ v[j] - do[i] @ out[i])
            dv[j] += p * do[i]
            dq[i] += ds * k[j] / np.sqrt(HS)
            dk[j] += ds * q[i] / np.sqrt(HS)
    is_gradient(dq, lambda q: (do * attention(q, k, v)).sum(), q)
    is_gradient(dk, lambda k: (do * attention(q, k, v)).sum(), k)
    is_gradient(dv, lambda v: (do * attention(q, k, v)).sum(), v)


def test_swiglu():
    a, b, dh, g = draw(C), draw(C), draw(C), np.array([0.6])

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    def swiglu(a, b, g):
        return g[0] * dh @ (a * sigmoid(a) * b)
    is_gradient(g * dh * b * sigmoid(a) * (1 + a * (1 - sigmoid(a))), lambda a: swiglu(a, b, g), a)
    is_gradient(g * dh * a * sigmoid(a), lambda b: swiglu(a, b, g), b)
    is_gradient(np.array([dh @ (a * sigmoid(a) * b)]), lambda g: swiglu(a, b, g), g)
