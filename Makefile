VENV = .venv
PYTEST_ARGS = -q -n 2
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: help demo test check

help:
	@echo "make demo   fit the VAE on digits under two estimators, and compare them"
	@echo "make test   run the tests (PYTEST_ARGS=... for pytest's own arguments)"
	@echo "make check  lint and types"
	@echo "Each installs into .venv first; VENV=folder for another."

demo: $(STAMP)
	$(BIN)/pyro-vi compare

# Two workers with one thread each: more threads than cores make every test slow.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(STAMP): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@
