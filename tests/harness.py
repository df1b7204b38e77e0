"""harness.py - what tests in Python share: where the project is, and its programs, which stand in
the directory BIN."""

import contextlib
import os
import signal
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path.cwd() / os.environ.get("BIN", "")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")     # as run_tests.sh has it
# A test that was started in the background ignores SIGINT, and so would its programs.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
TRAIN, GENERATE = BIN / "train_tiny", BIN / "generate"


@contextlib.contextmanager
def in_memory(name):
    """Work in a new directory, in memory where that can be: saving many runs to a disk takes
    minutes. Yields the directory."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="hmoe-%s-" % name, dir=memory) as directory, \
            pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv("LC_ALL", "C")
        yield directory
