"""What the programs show on a terminal while one waits."""

import os
import pty
import re
import subprocess
import time

import pytest
from harness import GENERATE, TRAIN

TINY = "--width 16 --layers 1 --heads 1 --context 8 --experts 2 --hidden 8 --threads 1".split()


def shown(command, until, seconds=60):
    """What a program prints on a terminal until a pattern comes; then it is stopped."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said, end = b"", time.monotonic() + seconds
    try:
        while not re.search(until, said) and time.monotonic() < end:
            said += os.read(ours, 65536)
    except OSError:                          # it has ended
        pass
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return said


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps on a long text, of which the last evaluation would take minutes."""
    folder = tmp_path_factory.mktemp("terminal")
    text = b"To be, or not to be, that is the question.\n" * 500000
    (folder / "text").write_bytes(text)
    subprocess.run([TRAIN, *TINY, "--data", folder / "text", "--out", folder / "run", "--steps",
                    "2", "--eval-tokens", "80", "--final-tokens", "80"], check=True,
                   stdout=subprocess.DEVNULL)
    return folder


@pytest.mark.parametrize("last", ["", "--final-tokens 900000000"])
def test_the_last_evaluation_shows_how_far_it_is(run, last):
    said = shown([TRAIN, "--resume", "--out", run / "run", *(last or "--final-tokens 100000000").split()],
                 rb"measuring the loss: [1-9]\d* %, \d+:\d\d left")
    assert re.search(rb"\rmeasuring the loss: [1-9]\d? %, \d+:\d\d left", said), said[-300:]
    assert b"final:" not in said


def test_a_score_shows_how_far_it_is(run):
    said = shown([GENERATE, run / "run", "--threads", "1", "--score", run / "text"],
                 rb"measuring the loss: [1-9]\d* %, \d+:\d\d left")
    assert re.search(rb"\rmeasuring the loss: [1-9]\d? %, \d+:\d\d left", said), said[-300:]


def test_a_short_score_shows_none_of_it(run, tmp_path):
    (tmp_path / "short").write_bytes(b"To be, or not to be\n" * 9)
    said = shown([GENERATE, run / "run", "--threads", "1", "--score", tmp_path / "short"], rb"nll .*\n")
    assert re.fullmatch(rb"nll \d+\.\d+ nats/token over 179 tokens\r\n", said)
