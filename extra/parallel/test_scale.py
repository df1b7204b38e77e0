"""test_scale.py - compares what scale.py computes with what runs: messages and bytes with what 1, 2
and 4 processes of mpi.c count; parameters, tokens and work with `generate --devices`; and sums with
a walk over each message. BIN stands before the programs' names."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from harness import GENERATE, ROOT, TRAIN

np = pytest.importorskip("numpy")
pytest.importorskip("matplotlib")
import scale  # noqa: E402

RULES = "pairs", "contiguous"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder for all that is written, with a text of 120,000 bytes."""
    folder = tmp_path_factory.mktemp("scale")
    (folder / "input").write_bytes((ROOT / "hmoe.h").read_bytes()[:120000])
    return folder


def run(here, *command):
    env = dict(os.environ, BUILD=here, DATA=here / "input", OMP_NUM_THREADS="1", MPI_DIR=here,
               OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)


# --- what processes count -------------------------------------------------------------------------

@pytest.fixture(scope="module")
def mpirun(here):
    """Runs mpi.c as so many processes."""
    if not shutil.which("mpicc") or not shutil.which("mpirun"):
        pytest.skip("no mpicc and mpirun here")
    program = here / "mpi"
    built = run(here, "mpicc", "-std=c99", "-O2", "-I.", "-o", program, "extra/parallel/mpi.c",
                "-lm")
    assert built.returncode == 0, built.stderr
    is_open = "Open MPI" in run(here, "mpirun", "--version").stdout
    many = ["--oversubscribe", "--bind-to", "none"] if is_open else []
    return lambda R, *arguments: run(here, "mpirun", *many, "-n", str(R), program, *arguments)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("R, D", [(R, D) for R in (1, 2, 4) for D in (1, 2, 4) if D <= R])
def test_each_rank_sends_what_scale_predicts(mpirun, R, D, rule):
    seen = mpirun(R, "counts", "modse" if D == 2 else "arithmetic", str(D), str(RULES.index(rule)))
    assert seen.returncode == 0, seen.stderr
    lines = [line.split() for line in seen.stdout.splitlines()]
    of = {word: [[int(x) for x in line[1:]] for line in lines if line[0] == word]
          for word in ("counted", "model", "routes")}
    assert len(of["counted"]) == 4 * R
    V, C, L, T, *H = of["model"][0]
    shape = scale.Shape("", V, C, L, T, H)
    counts = np.zeros((R, L, shape.E), int)
    for rank, layer, *rows in of["routes"]:
        counts[rank, layer] = rows
    traffic = scale.Traffic(shape, counts, scale.place(shape.H, D, rule), D=D)
    for rank, number, messages, size in of["counted"]:
        kind = scale.KINDS[number]
        paper = traffic.messages[kind][rank], traffic.bytes[kind][rank]
        assert paper == (messages, size), "rank %d, %s" % (rank, kind)


# --- by hand --------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", [1, 3, 1000, 600000])
def test_a_sum_sends_slices(n):
    """The slices of n numbers over 7 ranks, message by message."""
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
    np.testing.assert_array_equal(traffic.messages["rows"] - before[0], messages)
    np.testing.assert_array_equal(traffic.bytes["rows"] - before[1], sent)
    assert traffic.seconds["rows"] - waited == messages.max()


def predict(H, tokens, counts):
    shape = scale.Shape("", 1, 10, 1, 1, H, tokens=tokens)
    machine = dict(latency=1.0, bandwidth=40.0, speed=180.0, update=0.0)
    return shape, scale.predict(shape, np.array(counts), len(counts), "contiguous", machine)[0]


def test_the_seconds_of_two_ranks():
    shape, parts = predict([6, 2], 3, [[[1, 2]], [[3, 0]]])     # 0 sends 2 rows to 1, 1 sends 3
    assert parts["rows"] == pytest.approx(4 * (1 + 3 * 40 / 40), abs=1e-9), "there and back, twice"
    assert parts["work"] == pytest.approx(24 + 3 * shape.flops_shared() / 180, abs=1e-9)


def test_all_wait_for_the_rank_that_gets_most_rows():
    _, parts = predict([4, 3, 2, 1], 1, [[[1, 0, 0, 0]]] * 4)
    assert parts["rows"] == pytest.approx(2 * (3 + (3 + 3)), abs=1e-9)


# --- programs -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def toy(here):
    made = run(here, TRAIN, "--data", here / "input", "--out", here / "out", "--steps",
               "12", "--eval-every", "12", "--eval-tokens", "200", "--batch", "4")
    assert made.returncode == 0, made.stderr
    return here / "out/best"


@pytest.mark.parametrize("D", [2, 4])
def test_generate_adds_up_the_same_balance(here, toy, D):
    seen = run(here, GENERATE, toy, "--score", here / "input", "--routes", here / "routes",
               "--devices", str(D)).stdout
    rows, shape = scale.routes(here / "routes", 8), scale.SHAPES[0]
    near = len(rows) % 1000 / len(rows) + 1e-6       # what the last part leaves out
    for rule in RULES:
        words = re.search(r"%s: largest over mean: parameters (\S+) tokens (\S+) work (\S+)" % rule,
                          seen)
        assert words, seen
        paper = scale.balance(shape, scale.parts_of(rows, 1000, len(rows) // 1000, 4),
                              scale.place(shape.H, D, rule), D)
        assert [float(w) for w in words.groups()] == pytest.approx(paper[:3], abs=near), rule
        assert float(words[1]) == pytest.approx(paper[0], abs=1e-6), rule


def test_scale_writes_a_table_and_a_picture(here):
    said = run(here, sys.executable, scale.__file__, "--steps", "4", "--speed", "50",
               "--update", "1")
    assert said.returncode == 0, said.stderr
    assert len(re.findall(r"^ +\d+ +[124] .*\|", said.stdout, re.M)) == 72, said.stdout[:500]
    assert "</svg>" in (here / "scale.svg").read_text(encoding="utf-8")


def test_scale_refuses_no_bandwidth(here):
    bad = run(here, sys.executable, scale.__file__, "--bandwidth", "0")
    assert bad.returncode == 2
    assert "--bandwidth 0: must be above" in bad.stderr
