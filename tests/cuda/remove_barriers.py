#!/usr/bin/env python3
"""remove_barriers.py - does every barrier of hmoe_cuda.cu matter, and would a test notice?

For each line that waits (__syncthreads, __syncwarp, __pipeline_wait_prior) it compiles the tests
with a copy of hmoe_cuda.cu in which that one wait is missing, and runs them with threads in
ascending, descending and random order, and under ThreadSanitizer. One of these has to fail. So says
the unchanged file, which all of them have to pass. CXX=g++ chooses the compiler, and lines as
arguments choose barriers. The last line counts: "remove_barriers: N passed, N failed"."""

import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile

CUDA = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(CUDA))
WAIT = re.compile(r"(__syncthreads|__syncwarp|__pipeline_wait_prior)\s*\([^()]*\)\s*;")
COMPILE = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-g", "-w",
           "-I" + CUDA, "-I" + ROOT]
RUN = ["least", "0", "products", "products_side_by_side", "rmsnorm", "attention", "router",
       "router_gradients", "experts", "optimizer"]
ORDERS = [{"COC_ORDER": "0"}, {"COC_ORDER": "1"}, {"COC_ORDER": "2", "COC_SEED": "1"},
          {"COC_ORDER": "2", "COC_SEED": "2"}]


def build(folder, source, name, *flags):
    """The tests with another hmoe_cuda.cu. Line numbers stay those of the files they are in."""
    with open(os.path.join(CUDA, "cuda.cpp")) as f:
        test = f.read()
    assert test.count('#include "hmoe_cuda.cu"') == 1
    test = test.replace('#include "hmoe_cuda.cu"', '#include "%s.cu"' % name)
    for file, text in (name + ".cu", source), (name + ".cpp", test):
        with open(os.path.join(folder, file), "w") as f:
            f.write(text)
    program = os.path.join(folder, name)
    subprocess.run(COMPILE + list(flags) + ["-o", program, program + ".cpp"], check=True)
    return program


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


def main():
    with open(os.path.join(ROOT, "hmoe_cuda.cu")) as f:
        lines = f.read().splitlines(True)
    chosen = [int(a) for a in sys.argv[1:]] or [i + 1 for i, line in enumerate(lines)
                                                if WAIT.search(line)]
    passed = failed = 0
    with tempfile.TemporaryDirectory() as folder, \
            concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:

        def check(line):
            changed = list(lines)
            if line:
                changed[line - 1] = WAIT.sub(";", lines[line - 1])
            return caught(folder, "".join(changed), "without%d" % line)

        for line, why in zip([0] + chosen, pool.map(check, [0] + chosen)):
            good = (why is None) == (line == 0)
            passed, failed = passed + good, failed + (not good)
            text = WAIT.search(lines[line - 1]).group(0) if line else "nothing removed"
            print("line %4d  %-36s %s" % (line, text, why or "passes"), "" if good else "FAILED",
                  flush=True)
    print("remove_barriers: %d passed, %d failed" % (passed, failed))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
