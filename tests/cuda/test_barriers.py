"""Every barrier of hmoe_cuda.cu matters, and a test notices that it is missing.

For each line that waits (__syncthreads, __syncwarp, __pipeline_wait_prior) this compiles the tests
with a copy of hmoe_cuda.cu in which that one wait is missing, and runs them with threads in
ascending, descending and random order, and under ThreadSanitizer. One of these has to fail. All of
them have to pass with the unchanged file. CXX=g++ chooses the compiler."""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import ROOT

CUDA = ROOT / "tests" / "cuda"
LINES = (ROOT / "hmoe_cuda.cu").read_text().splitlines(True)
WAIT = re.compile(r"(__syncthreads|__syncwarp|__pipeline_wait_prior)\s*\([^()]*\)\s*;")
WAITS = [i for i, line in enumerate(LINES) if WAIT.search(line)]
COMPILE = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-g", "-w", "-I", CUDA, "-I", ROOT]
RUN = ["least", "0", "products", "products_side_by_side", "rmsnorm", "attention", "router",
       "router_gradients", "experts", "optimizer"]
ORDERS = [{"COC_ORDER": "0"}, {"COC_ORDER": "1"}, {"COC_ORDER": "2", "COC_SEED": "1"},
          {"COC_ORDER": "2", "COC_SEED": "2"}]


def build(folder, source, name, *flags):
    """The tests with another hmoe_cuda.cu. Line numbers stay those of the files they are in."""
    test = (CUDA / "cuda.cpp").read_text()
    assert test.count('#include "hmoe_cuda.cu"') == 1
    test = test.replace('#include "hmoe_cuda.cu"', '#include "%s.cu"' % name)
    (folder / (name + ".cu")).write_text(source)
    (folder / (name + ".cpp")).write_text(test)
    subprocess.run([*COMPILE, *flags, "-o", name, name + ".cpp"], cwd=folder, check=True)
    return folder / name


def fails(program, settings):
    """Why the tests fail, or None where they pass."""
    environment = dict(os.environ, TSAN_OPTIONS="halt_on_error=1", **settings)
    try:
        ran = subprocess.run([program] + RUN, env=environment, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, timeout=600, errors="replace")
    except subprocess.TimeoutExpired:
        return "no end"
    if ran.returncode == 0:
        return None
    said = re.search(r"cuda_on_cpu: .*|data race [^ ]* in [^<(]*|FAILED .*", ran.stdout)
    return said.group(0) if said else "status %d" % ran.returncode


def caught(folder, source, name):
    program = build(folder, source, name)
    for settings in ORDERS:
        why = fails(program, settings)
        if why:
            return "order %s: %s" % (settings["COC_ORDER"], why)
    why = fails(build(folder, source, name + "-tsan", "-fsanitize=thread"), {})
    return why and "TSan: " + why


@pytest.fixture(scope="module")
def caught_without(request, tmp_path_factory):
    """How the tests fail without each of these lines; None is the unchanged file."""
    folder = tmp_path_factory.mktemp("barriers")
    lines = [None] + [test.callspec.params["line"] for test in request.session.items
                      if test.originalname == "test_a_test_fails_without"]

    def without(line):
        changed = [WAIT.sub(";", text) if i == line else text for i, text in enumerate(LINES)]
        return caught(folder, "".join(changed), "without%s" % line)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(lines, pool.map(without, lines)))


def test_the_unchanged_file_passes(caught_without):
    assert caught_without[None] is None


@pytest.mark.parametrize("line", WAITS, ids=lambda i: "%d: %s" % (i + 1, WAIT.search(LINES[i])[0]))
def test_a_test_fails_without(caught_without, line):
    assert caught_without[line], "all tests pass without it"
