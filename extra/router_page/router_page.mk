# generate contains page.html, as a list of bytes, for its option --page.
$(BIN)generate: extra/router_page/page.h $(BUILD)/page
$(BUILD)/page: extra/router_page/page.html $(BUILD)/flags
	@od -v -An -tu1 extra/router_page/page.html | sed 's/[0-9][0-9]*/&,/g' >$@

## make docs/router.png   take a picture of the router's page
docs/router.png: $(PROGRAMS) extra/router_page/page.html
	@$(PYTHON_NEEDED)
	./$(BIN)generate out/best --score $(TINY) --page $(BUILD)/router.html
	$(PYTHON) extra/router_page/picture.py $(BUILD)/router.html $@

FULL_TESTS += extra/router_page/test_page.py
