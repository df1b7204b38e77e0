## make mpi           build the trainer for several processes and machines: train_tiny_mpi
## make scale         compute what 1 to 1,024 processes would send, and how long that would take
MPICC = mpicc

# MPI's compiler finds out for itself what it can do: its flags have a directory of their own.
mpi:
	@command -v $(MPICC) >/dev/null || { echo 'make mpi: there is no $(MPICC): install Open MPI' \
		'(Debian: openmpi-bin libopenmpi-dev) or MPICH (mpich libmpich-dev), or say where it' \
		'is: make mpi MPICC=/path/to/mpicc' >&2; exit 1; }
	@$(MAKE) --no-print-directory CC='$(MPICC)' BUILD=$(BUILD)/mpi $(BIN)train_tiny_mpi

$(BIN)train_tiny_mpi: train_tiny.c $(HEADERS) $(BUILD)/flags
	$(COMPILE) -DHMOE_MPI -o $@ $< $(LINK)

scale: $(PROGRAMS) data
	@$(PYTHON_NEEDED)
	@BIN=$(BIN) BUILD=$(BUILD) DATA='$(DATA)' $(PYTHON) extra/parallel/scale.py $(ARGS)

FULL_TESTS += extra/parallel/test_mpi.sh extra/parallel/test_scale.py
LONG_TESTS += extra/parallel/test_mpi.sh

.PHONY: mpi scale
