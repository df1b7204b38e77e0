# What the tests in Python and several folders here need: an environment of Python with the packages
# of requirements.txt. The tests here belong to `make test-full`.
PYTHON = $(BUILD)/python/bin/python3
PYTHON_READY = sh extra/python.sh extra/requirements.txt $(BUILD)/python
PYTHON_NEEDED = $(PYTHON_READY) || { echo 'make $@: needs python3, with venv, and the packages that' \
	'extra/requirements.txt lists from PyPI: see $(BUILD)/python.log' >&2; exit 1; }

include $(sort $(wildcard extra/*/*.mk))
