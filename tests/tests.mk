# The tests. Those in C are built like the programs, as doubles or as floats, and run_tests.sh runs
# them all and adds up. course/course.mk and extra/*/*.mk have added their own.
## make test-full     all of `make test`, the slower tests, and once more with sanitizers
## make test-long     train with six seeds, and take out each barrier of the GPU: 15 minutes
## make test-everywhere   other machines, under qemu and wine; and programs that look for mistakes
## make fuzz          look for files that break the readers: SECONDS=60, with clang
## JOBS=4 runs four tests at a time
## make bench         measure speed, a minute; PROFILE=1 adds where the time goes
DOUBLE_TESTS += $(patsubst %,$(BUILD)/tests/%,model/gradients model/by_hand model/against_naive \
	model/steering files/precision)
FLOAT_TESTS += $(patsubst %,$(BUILD)/tests/%,model/reproducible model/extremes files/errors \
	files/locale files/damaged)
TESTS = $(DOUBLE_TESTS) $(FLOAT_TESTS) $(BUILD)/tests/model/against_naive_float \
	$(BUILD)/tests/model/against_naive_plain
SCRIPTS = $(patsubst %,tests/programs/%.sh,house stack header programs runs) tests/cuda/cuda.sh
BENCH = $(BUILD)/tests/programs/bench
USED = $(HEADERS) $(wildcard tests/*.h tests/*/*.h) $(BUILD)/flags

all: $(TESTS) $(BENCH)

$(DOUBLE_TESTS): REAL = -DHMOE_REAL=double
$(DOUBLE_TESTS) $(FLOAT_TESTS) $(BENCH): $(BUILD)/%: %.c $(USED)
	@mkdir -p $(@D)
	$(COMPILE) $(REAL) -o $@ $< $(LINK)
$(BUILD)/tests/model/against_naive_float $(BUILD)/tests/model/against_naive_plain: \
		tests/model/against_naive.c $(USED)
	@mkdir -p $(@D)
	$(COMPILE) $(PLAIN_TEST) -o $@ $< $(LINK)
# the plain product of PRODUCTS IN SHORT
$(BUILD)/tests/model/against_naive_plain: PLAIN_TEST = -DHMOE_REAL=double -DHMOE_PLAIN

JOBS = 1
RUN_TESTS = JOBS=$(JOBS) sh tests/run_tests.sh CC='$(CC)' PYTHON=$(PYTHON)
PYTHON_OR_NOT = @$(PYTHON_READY) || echo 'no Python environment: tests that need it are skipped'

test: all
	@$(RUN_TESTS) BIN=$(BIN) BUILD=$(BUILD) $(TESTS) $(SCRIPTS)

# The sanitizers' build has its own directory, so that the programs here stay the fast ones. The
# longest test comes first: beside it all others run, if JOBS is above 1.
SANITIZED = $(BUILD)/sanitized
FULL_TESTS += tests/model/top_p.sh tests/programs/test_terminal.py tests/programs/test_options.py \
	tests/files/test_outputs.py tests/files/test_crashes.py

test-full: all
	@$(MAKE) --no-print-directory DEBUG=1 BUILD=$(SANITIZED) BIN=$(SANITIZED)/ all
	$(PYTHON_OR_NOT)
	@$(MAKE) --no-print-directory playground || echo 'no playground: its test is skipped'
	@$(RUN_TESTS) BIN=$(BIN) BUILD=$(BUILD) FULL=1 tests/cuda/cuda.sh FULL= \
		$(TESTS) $(filter-out tests/cuda/cuda.sh,$(SCRIPTS)) $(FULL_TESTS) \
		BIN=$(SANITIZED)/ BUILD=$(SANITIZED) \
		$(TESTS:$(BUILD)/%=$(SANITIZED)/%) tests/programs/programs.sh tests/programs/runs.sh \
		tests/cuda/cuda_programs.sh tests/cuda/test_static.py

test-long: $(PROGRAMS) data
	@$(MAKE) --no-print-directory DEBUG=1 BUILD=$(SANITIZED) $(SANITIZED)/tests/files/damaged
	$(PYTHON_OR_NOT)
	@$(RUN_TESTS) BIN=$(BIN) tests/model/learning.sh tests/cuda/test_barriers.py \
		FULL=1 tests/files/test_crashes.py $(SANITIZED)/tests/files/damaged $(LONG_TESTS)

test-everywhere:
	@$(RUN_TESTS) BUILD=$(BUILD) tests/programs/everywhere.sh tests/programs/analysis.sh

SECONDS = 60
fuzz:
	@sh tests/files/fuzz.sh $(BUILD)/fuzz $(SECONDS)

# This is not one of the tests: a time proves nothing, and other work disturbs it.
bench: $(BENCH)
	@$(BENCH)

.PHONY: test test-full test-long test-everywhere fuzz bench
