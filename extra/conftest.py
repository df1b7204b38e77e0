"""conftest.py - what pytest gives to the tests of pages: a browser."""

import browser
import pytest


@pytest.fixture(scope="session")
def chromium():
    if browser.MISSING:
        pytest.skip("no %s here" % browser.MISSING)
    with browser.chromium() as chromium:
        yield chromium
