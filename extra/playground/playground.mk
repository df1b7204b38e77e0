## make playground    build a page that trains in any browser: build/playground.html; needs clang
playground: $(BUILD)/playground.html
$(BUILD)/playground.html: $(addprefix extra/playground/,build.sh page.html playground.c worker.js) \
		hmoe.h $(TINY)
	@sh extra/playground/build.sh $(@:.html=) $(TINY)

## make docs/playground.png   take a picture of that page
docs/playground.png: $(BUILD)/playground.html
	@$(PYTHON_NEEDED)
	$(PYTHON) extra/playground/picture.py $(BUILD)/playground.html $@

FULL_TESTS += extra/playground/test_playground.py

.PHONY: playground
