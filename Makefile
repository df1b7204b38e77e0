# Builds the two programs. `make` alone says what there is. The other commands are in
# tests/tests.mk, course/course.mk and extra/*/*.mk; `make help-all` prints the lines with ## there.
#
# Settings, as in `make CC=clang run`:
#   CC, CFLAGS, LDFLAGS   the compiler; flags that come after all others; flags to link with
#   DEBUG=1               with the address and undefined-behaviour sanitizers, slowly
#   OPENMP=0              one thread
#   PLAIN=1               with the plain product of hmoe.h, slow
#   DATA, ARGS            for `make run`: a text, and options of train_tiny
#   BUILD                 the directory for everything but the two programs
#   BIN                   stands before their names: BIN=build/ makes build/train_tiny
#   NVCC, SM              for `make cuda`: its compiler, and for which generations of GPUs
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
NVCC = $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc) nvcc)
SM = 75 80 86 89 90

TINY = tinyshakespeare/input.txt
HEADERS = hmoe.h cli.h $(wildcard extra/*/*.h)
PROGRAMS = $(BIN)train_tiny $(BIN)generate

help:
	@echo 'make run           fetch a text, train on it for a minute or two, and let the model write'
	@echo 'make run DATA=F    the same with a text of your own; ARGS="--steps 500" for more options'
	@echo 'make test          check that the mathematics is right: two minutes, no network'
	@echo 'make train_tiny    build the trainer: ./train_tiny --help'
	@echo 'make generate      build the writer: ./generate --help'
	@echo 'make cuda          build both for NVIDIA GPUs too: ./train_tiny --backend cuda'
	@echo 'make clean         remove everything that was built; texts and trained models stay'
	@echo 'make help-all      the other commands: the course, the laboratory, more tests, ...'

## make data          fetch tinyshakespeare, 1 MB
## make all           build the programs and the tests
help-all: help
	@echo; sed -n 's/^## //p' $(MAKEFILE_LIST); echo
	@echo 'CC=clang CFLAGS=... DEBUG=1 (sanitizers) OPENMP=0 (one thread) PLAIN=1 change the build,'
	@echo 'NVCC=... and SM="80 90" (generations of GPUs) how it is built for CUDA.'

# --- flags ----------------------------------------------------------------------------------------
# Every build has FLAGS. Each of WANTED is added if a program compiles and links with it:
#   -march=native                every instruction that this machine has
#   -mprefer-vector-width=512    the whole of AVX-512's vectors, not half of them
#   -ffp-contract=fast           a * b + c is one instruction; no other liberty with numbers
#   -fno-math-errno              sqrtf is one instruction
# extra/probe.sh tries them, and looks for OpenMP, for the sanitizers, and for the flags that 32-bit
# x86 and Windows need. It leaves the answer in $(BUILD)/flags and $(BUILD)/libraries.
FLAGS = -std=c99 -Wall -Wextra -Wpedantic -Wshadow
WANTED = -march=native -mprefer-vector-width=512 -ffp-contract=fast -fno-math-errno
COMPILE = $(CC) -I. `cat $(BUILD)/flags` $(if $(PLAIN),-DHMOE_PLAIN) $(CFLAGS)
LINK = $(LDFLAGS) `cat $(BUILD)/libraries` -lm

$(BUILD)/flags: extra/probe.sh $(BUILD)/settings
	@FLAGS='$(FLAGS)' WANTED='$(WANTED)' sh extra/probe.sh $(BUILD)

# These files hold the settings of the last make. A file that changes makes what depends on it anew.
export CC CFLAGS LDFLAGS DEBUG OPENMP
export KEPT_settings = $(CC) | $(CFLAGS) | $(LDFLAGS) | $(DEBUG) $(OPENMP) $(PLAIN) | $(FLAGS) $(WANTED)
export KEPT_backend = $(BACKEND)
export KEPT_nvcc = $(TO_CUDA)
$(BUILD)/settings $(BUILD)/backend $(BUILD)/nvcc: always
	@mkdir -p $(BUILD)
	@printf '%s\n' "$$KEPT_$(@F)" | cmp -s - $@ || printf '%s\n' "$$KEPT_$(@F)" >$@

# --- the programs ---------------------------------------------------------------------------------
all: $(PROGRAMS)

OBJECT_cuda = $(BUILD)/hmoe_cuda.o
WITH_cuda = -DHMOE_CUDA $(OBJECT_cuda) `cat $(BUILD)/cuda_libraries`
$(PROGRAMS): $(BIN)%: %.c $(HEADERS) $(BUILD)/flags $(BUILD)/backend $(OBJECT_$(BACKEND))
	$(COMPILE) -DHMOE_PAGE='"$(BUILD)/page"' -o $@ $< $(WITH_$(BACKEND)) $(LINK)

# nvcc compiles one file, and the C compiler links CUDA's runtime into the program, which therefore
# starts on any machine. The object holds machine code for each of SM, and PTX for newer GPUs. Any
# make but `make cuda` builds the programs without it again.
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
		echo 'make cuda: computes in float: leave out -DHMOE_REAL=double' >&2; exit 1;; esac
	@$(NVCC) --version >/dev/null 2>&1 || { echo 'make cuda: cannot run $(NVCC): install the CUDA' \
		'toolkit, or say where it is: make cuda NVCC=/path/to/bin/nvcc' >&2; exit 1; }
	@$(MAKE) --no-print-directory BACKEND=cuda $(PROGRAMS)

data: $(TINY)
$(TINY):; @sh tinyshakespeare/fetch.sh

# GOMP_SPINCOUNT: gcc's threads wait for one another in a loop, and with this soon fall asleep, so
# that a thread whose core has other work stops none of them.
run: export GOMP_SPINCOUNT ?= 10000
run: $(PROGRAMS)
	@data='$(or $(DATA),$(TINY))'; \
	if [ -z '$(DATA)' ] && [ ! -f $(TINY) ] && ! sh tinyshakespeare/fetch.sh; then \
		echo 'No network: training on the sources of this project instead.'; \
		data=$(BUILD)/sources.txt; cat $(HEADERS) *.c tests/*/*.c README.md >"$$data"; fi; \
	./$(BIN)train_tiny --data "$$data" $(if $(findstring --resume,$(ARGS)),,--overwrite) $(ARGS) \
		&& echo && ./$(BIN)generate out/best && echo

clean:
	rm -rf build train_tiny train_tiny_mpi generate

always:
.PHONY: help help-all all cuda data run clean always

include course/course.mk extra/extra.mk tests/tests.mk
