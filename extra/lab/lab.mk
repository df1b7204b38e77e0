## make lab           are the papers right at this scale? 45 minutes; QUICK=1: two
lab: $(PROGRAMS) $(if $(DATA),,data)
	@$(PYTHON_NEEDED)
	@BIN=$(BIN) QUICK=$(QUICK) DATA='$(DATA)' $(PYTHON) extra/lab/lab.py

FULL_TESTS += extra/lab/test_lab.py
LONG_TESTS += extra/lab/test_lab.py

.PHONY: lab
