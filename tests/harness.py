"""harness.py - what tests in Python share: where the project is, and its programs, which stand in
the directory BIN."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path.cwd() / os.environ.get("BIN", "")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")     # as run_tests.sh has it
TRAIN, GENERATE = BIN / "train_tiny", BIN / "generate"

passed = failed = 0


def check(name, right, seen=""):
    """Returns whether it is right."""
    global passed, failed
    passed, failed = passed + bool(right), failed + (not right)
    if not right:
        print("FAILED %s%s" % (name, ": %s" % (seen,) if seen != "" else ""), flush=True)
    return right


def same(name, seen, wanted):
    check(name, seen == wanted, "saw %.300r, not %.300r" % (seen, wanted))


def done(name):
    """Ends the test; before any check: it was skipped."""
    print("%s: %d passed, %d failed" % (name, passed, failed))
    sys.exit(failed > 0)
