# Muon belongs to train_tiny (--optimizer muon); its test is one of `make test`.
DOUBLE_TESTS += $(BUILD)/extra/muon/test_muon
