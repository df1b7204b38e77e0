"""harness.py - for tests in Python what test.h is for C: checks that print what they saw, and the
last line, which adds up."""

import sys

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
