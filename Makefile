VENV = .venv
PYTEST_ARGS = -q -n 2
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
PYTHON = python3
BENCH_ARGS =
BENCH_STAMP = $(VENV)/.installed-bench

.PHONY: help demo test test-slow test-all check smoke bench bench-solution

help:
	@echo "make demo   fit the VAE on digits under two estimators, and compare them"
	@echo "make test   run the quick tests (PYTEST_ARGS=... for pytest's own arguments)"
	@echo "make test-slow  run the tests that compile, or run whole studies, benchmarks and commands"
	@echo "make test-all   run all tests"
	@echo "make check  lint, types and import directions"
	@echo "make smoke  build the wheel and use it in a fresh virtual environment (PYTHON=... for another interpreter)"
	@echo "make bench  time a step against stock Pyro, PyTorch and NumPyro (BENCH_ARGS=... for the script's own arguments)"
	@echo "make bench-solution  time whole solutions against the same, from the start of a process (BENCH_ARGS=...)"
	@echo "All but smoke install into .venv first; VENV=folder for another."

demo: $(STAMP)
	$(BIN)/pyro-vi compare

# Two workers with one thread each: more threads than cores make every test slow.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

smoke:
	bash .ci/smoke $(PYTHON)

bench: $(BENCH_STAMP)
	$(BIN)/python scripts/benchmark_step.py $(BENCH_ARGS)

bench-solution: $(BENCH_STAMP)
	$(BIN)/python scripts/benchmark_solution.py $(BENCH_ARGS)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	touch $@
