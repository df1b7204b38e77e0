"""harness.py - what tests in Python share: where the project is, and its programs, which stand in
the directory BIN."""

import os
import signal
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path.cwd() / os.environ.get("BIN", "")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")     # as run_tests.sh has it
# A test that was started in the background ignores SIGINT, and so would its programs.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
TRAIN, GENERATE = BIN / "train_tiny", BIN / "generate"
