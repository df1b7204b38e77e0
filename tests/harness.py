"""harness.py - what tests in Python share: where the project is, and its programs, which stand in
the directory BIN."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path.cwd() / os.environ.get("BIN", "")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")     # as run_tests.sh has it
TRAIN, GENERATE = BIN / "train_tiny", BIN / "generate"
