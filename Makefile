# Builds, runs and tests hmoe.h. `make` alone says what there is.
#
# probe.sh finds out what the compiler can do. The answer is kept in build/flags, and found anew
# when CC, CFLAGS, DEBUG or OPENMP change.
# `make cuda` puts the backend for a GPU into the two programs, any other make takes it out again.

CC = cc
CFLAGS =
LDFLAGS =
DEBUG = 0
OPENMP = 1
DATA =
ARGS =
BUILD = build
BIN =
BACKEND = cpu
MPICC = mpicc
NVCC = $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc) nvcc)
SM = 75 80 86 89 90

TINY = tinyshakespeare/input.txt
HEADERS = hmoe.h hmoe_placement.h hmoe_muon.h hmoe_parallel.h hmoe_mpi.h cli.h cli_peers.h
PROGRAMS = $(BIN)train_tiny $(BIN)generate
DOUBLE_TESTS = $(BUILD)/test_gradients $(BUILD)/test_equivalence $(BUILD)/test_numbers \
	$(BUILD)/test_muon $(BUILD)/test_steering
FLOAT_TESTS = $(BUILD)/test_float $(BUILD)/test_errors $(BUILD)/test_mutations \
	$(BUILD)/test_extremes
BOTH = $(BUILD)/test_equivalence_float
TESTS = $(DOUBLE_TESTS) $(FLOAT_TESTS) $(BOTH)
SCRIPTS = tests/test_header.sh tests/test_programs.sh tests/test_cuda.sh
COMPILE = $(CC) -I. `cat $(BUILD)/flags` $(CFLAGS)
LINK = $(LDFLAGS) `cat $(BUILD)/libraries` -lm

help:
	@echo 'make run          fetch a text, train on it for a minute or two, and let the model write'
	@echo 'make run DATA=F   the same with a text of your own; ARGS="--steps 500" for more options'
	@echo 'make test         prove that the mathematics is right: about a minute, no network'
	@echo 'make test-full    the same, and once more under the address and undefined sanitizers'
	@echo 'make test-long    train with six seeds, and take out each barrier of the GPU: 15 minutes'
	@echo 'make test-everywhere  on other machines, under qemu and wine; and what analysers say'
	@echo 'make fuzz         look for files that break the readers: SECONDS=60, with clang'
	@echo 'make lab          are the papers right at this scale? 45 minutes; QUICK=1: two'
	@echo 'make playground   a page that trains in any browser: $(BUILD)/playground.html, with clang'
	@echo 'make scale        what 1 to 1,024 processes would send, and how long that would take'
	@echo 'make interop      compare with numpy, safetensors and tokenizers, put under $(BUILD)/python'
	@echo 'make bench        measure speed, a minute; PROFILE=1 adds where the time goes'
	@echo 'make exercise-01  to 10: write a function of hmoe.h anew, and be told what is wrong with it'
	@echo 'make grade        the same for a whole class: DIR=submissions, see exercises/TEACHING.md'
	@echo 'make train_tiny   build the trainer: ./train_tiny --help'
	@echo 'make generate     build the writer: ./generate --help'
	@echo 'make cuda         build both for NVIDIA GPUs too: ./train_tiny --backend cuda'
	@echo 'make mpi          build the trainer for several processes and machines: train_tiny_mpi'
	@echo 'make data         fetch tinyshakespeare, 1 MB'
	@echo 'make clean        remove what was built; text and trained models stay'
	@echo
	@echo 'CC=clang CFLAGS=... DEBUG=1 (sanitizers) OPENMP=0 (one thread) change how it is built,'
	@echo 'NVCC=... and SM="80 90" (generations of GPUs) what is for CUDA.'

all: $(PROGRAMS) $(TESTS) $(BUILD)/bench

# --- what the compiler can do ---------------------------------------------------------------------

export CC CFLAGS LDFLAGS DEBUG OPENMP
export KEPT_settings = $(CC) | $(CFLAGS) | $(LDFLAGS) | DEBUG=$(DEBUG) | OPENMP=$(OPENMP)
export KEPT_backend = $(BACKEND)
export KEPT_nvcc = $(TO_CUDA)

$(BUILD)/settings $(BUILD)/backend $(BUILD)/nvcc: always
	@mkdir -p $(BUILD)
	@printf '%s\n' "$$KEPT_$(@F)" >$@.new
	@if cmp -s $@ $@.new; then rm $@.new; else mv $@.new $@; fi

$(BUILD)/flags: probe.sh $(BUILD)/settings
	@sh probe.sh $(BUILD)

# --- programs -------------------------------------------------------------------------------------

OBJECT_cuda = $(BUILD)/hmoe_cuda.o
WITH_cuda = -DHMOE_CUDA $(OBJECT_cuda) `cat $(BUILD)/cuda_libraries`

$(PROGRAMS): $(BIN)%: %.c $(HEADERS) $(BUILD)/flags $(BUILD)/backend $(OBJECT_$(BACKEND))
	$(COMPILE) -DHMOE_PAGE='"$(BUILD)/page"' -o $@ $< $(WITH_$(BACKEND)) $(LINK)

# The page for `generate --page` as a list of bytes.
$(BIN)generate: page.h $(BUILD)/page
$(BUILD)/page: lab/page.html $(BUILD)/flags
	@od -v -An -tu1 lab/page.html | sed 's/[0-9][0-9]*/&,/g' >$@

# nvcc compiles one file, and the C compiler links CUDA's runtime into the program: it starts on any
# machine. SM: machine code for these, and PTX of the last for what comes after.
TO_CUDA = $(NVCC) -std=c++17 -O3 -Werror all-warnings --threads 0 \
	-Xcompiler -fno-exceptions,-fno-threadsafe-statics \
	$(foreach sm,$(SM),-gencode arch=compute_$(sm),code=sm_$(sm)) \
	-gencode arch=compute_$(lastword $(SM)),code=compute_$(lastword $(SM))

$(OBJECT_cuda): hmoe_cuda.cu hmoe.h $(BUILD)/nvcc
	$(TO_CUDA) -c -o $@ hmoe_cuda.cu
	@found=`$(NVCC) --dryrun hmoe_cuda.cu 2>&1 | sed -n 's/^#. LIBRARIES=//p' | tr -d '"'`; \
	echo "$$found -lcudart_static -ldl -lpthread -lrt" >$(BUILD)/cuda_libraries

cuda:
	@case $$KEPT_settings in *HMOE_REAL=double*) \
		echo 'make cuda: a GPU computes in float here: leave out -DHMOE_REAL=double' >&2; exit 1;; esac
	@$(NVCC) --version >/dev/null 2>&1 || { echo 'make cuda: cannot run $(NVCC): install the CUDA' \
		'toolkit, or say where it is: make cuda NVCC=/path/to/bin/nvcc' >&2; exit 1; }
	@$(MAKE) --no-print-directory BACKEND=cuda $(PROGRAMS)

# Several processes: MPI's compiler finds out for itself what it can do.
mpi:
	@command -v $(MPICC) >/dev/null || { echo 'make mpi: there is no $(MPICC): install Open MPI' \
		'(Debian: openmpi-bin libopenmpi-dev) or MPICH (mpich libmpich-dev), or say where it' \
		'is: make mpi MPICC=/path/to/mpicc' >&2; exit 1; }
	@$(MAKE) --no-print-directory CC='$(MPICC)' BUILD=$(BUILD)/mpi $(BIN)train_tiny_mpi

$(BIN)train_tiny_mpi: train_tiny.c $(HEADERS) $(BUILD)/flags
	$(COMPILE) -DHMOE_MPI -o $@ $< $(LINK)

data: $(TINY)

$(TINY):
	@sh tinyshakespeare/fetch.sh

# Without a network there is always one text at hand: this project. gcc's threads wait for each other
# by turning in a loop: soon enough asleep, one that has lost its core to other work stops none.
run: export GOMP_SPINCOUNT ?= 10000
run: $(PROGRAMS)
	@data='$(DATA)'; \
	if [ -z "$$data" ]; then \
		data=$(TINY); \
		if [ ! -f "$$data" ] && ! sh tinyshakespeare/fetch.sh; then \
			echo 'No network: training on the sources of this project instead.'; \
			data=$(BUILD)/sources.txt; \
			cat $(HEADERS) *.c tests/*.[ch] README.md >"$$data"; \
		fi; \
	fi; \
	./$(BIN)train_tiny --data "$$data" $(ARGS) && echo && ./$(BIN)generate out/best && echo

# --- tests ----------------------------------------------------------------------------------------

$(DOUBLE_TESTS): $(BUILD)/%: tests/%.c $(wildcard tests/*.h) $(HEADERS) $(BUILD)/flags
	$(COMPILE) -DHMOE_REAL=double -o $@ $< $(LINK)

$(FLOAT_TESTS): $(BUILD)/%: tests/%.c $(wildcard tests/*.h) $(HEADERS) $(BUILD)/flags
	$(COMPILE) -o $@ $< $(LINK)

$(BOTH): $(BUILD)/%_float: tests/%.c $(wildcard tests/*.h) $(HEADERS) $(BUILD)/flags
	$(COMPILE) -o $@ $< $(LINK)

RUN_TESTS = sh tests/run_tests.sh CC='$(CC)'

test: all
	@$(RUN_TESTS) BIN=$(BIN) BUILD=$(BUILD) $(TESTS) $(SCRIPTS)

# The sanitizers' build has its own directory, so that the programs here stay the fast ones.
SANITIZED = $(BUILD)/sanitized

test-full: all
	@$(MAKE) --no-print-directory DEBUG=1 BUILD=$(SANITIZED) BIN=$(SANITIZED)/ all
	@$(PYTHON_READY) || echo 'no Python environment: tests that need it are skipped'
	@$(MAKE) --no-print-directory playground || echo 'no playground: its test is skipped'
	@$(RUN_TESTS) BIN=$(BIN) BUILD=$(BUILD) $(TESTS) $(SCRIPTS) \
		tests/test_top_p.sh tests/test_options.py tests/test_crashes.py PYTHON=$(PYTHON) tests/interop.py \
		tests/test_page.py tests/test_lab.py tests/test_playground.py tests/test_scale.py \
		PYTHON=python3 tests/test_mpi.sh tests/test_exercises.py tests/test_tour.py \
		BIN=$(SANITIZED)/ BUILD=$(SANITIZED) \
		$(TESTS:$(BUILD)/%=$(SANITIZED)/%) tests/test_programs.sh tests/test_options.py \
		tests/test_cuda_programs.sh tests/cuda_static.py FULL=1 tests/test_cuda.sh \
		$(SANITIZED)/test_mutations

test-long: $(PROGRAMS) data
	@$(RUN_TESTS) BIN=$(BIN) tests/test_learning.sh tests/cuda/remove_barriers.py FULL=1 \
		tests/test_crashes.py tests/test_mpi.sh

# What runs elsewhere, and what only looks: for it there is more to install (.github/workflows).
test-everywhere:
	@$(RUN_TESTS) BUILD=$(BUILD) tests/test_everywhere.sh tests/test_analysis.sh

SECONDS = 60

fuzz:
	@sh tests/fuzz.sh $(BUILD)/fuzz $(SECONDS)

# What needs packages from PyPI has an environment of its own.
PYTHON = $(BUILD)/python/bin/python3
PYTHON_READY = sh tests/python.sh requirements.txt $(BUILD)/python
PYTHON_NEEDED = $(PYTHON_READY) || { echo 'make $@: needs python3, with venv, and what' \
	'requirements.txt lists from PyPI: see $(BUILD)/python.log' >&2; exit 1; }

interop: $(PROGRAMS)
	@$(PYTHON_NEEDED)
	@$(RUN_TESTS) BIN=$(BIN) PYTHON=$(PYTHON) tests/interop.py

lab: $(PROGRAMS) $(if $(DATA),,data)
	@$(PYTHON_NEEDED)
	@BIN=$(BIN) QUICK=$(QUICK) DATA='$(DATA)' $(PYTHON) lab/lab.py

scale: $(PROGRAMS) data
	@$(PYTHON_NEEDED)
	@BIN=$(BIN) BUILD=$(BUILD) DATA='$(DATA)' $(PYTHON) scale/scale.py $(ARGS)

# A page of `generate --page`, as the README shows it.
docs/router.png: $(PROGRAMS) lab/page.html
	@$(PYTHON_NEEDED)
	./$(BIN)generate out/best --score $(TINY) --page $(BUILD)/router.html
	$(PYTHON) tests/test_page.py --picture $@ $(BUILD)/router.html

# Trains in a browser, from a file: see playground/.
playground: $(BUILD)/playground.html
$(BUILD)/playground.html: $(wildcard playground/*) $(HEADERS) $(TINY)
	@sh playground/build.sh $(@:.html=) $(TINY)

docs/playground.png: $(BUILD)/playground.html
	@$(PYTHON_NEEDED)
	$(PYTHON) tests/test_playground.py --picture $@

# Not one of the tests: a time is no proof, and other jobs disturb it.
$(BUILD)/bench: tests/bench.c hmoe.h $(BUILD)/flags
	$(COMPILE) -o $@ tests/bench.c $(LINK)

bench: $(BUILD)/bench
	@$(BUILD)/bench

clean:
	rm -rf build train_tiny train_tiny_mpi generate

always:

.PHONY: help all cuda mpi data run test test-full test-long test-everywhere fuzz interop lab bench \
	playground scale clean always

include exercises/exercises.mk
