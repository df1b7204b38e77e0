## make interop       compare with numpy, safetensors and tokenizers, put under build/python
interop: $(PROGRAMS)
	@$(PYTHON_NEEDED)
	@$(RUN_TESTS) BIN=$(BIN) extra/interop/test_interop.py

FULL_TESTS += extra/interop/test_interop.py

.PHONY: interop
