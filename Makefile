# Two commands on a fresh machine that has python3 and make: `make demo` and `make test`. Each sets itself up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# On few cores, waiting threads that spin take the time of those that work.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0

.PHONY: demo test test-chaos setup lint tests format constraints clean

demo: setup
	$(BIN)/mammography demo --outputs demo

test: setup lint tests

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

tests: setup
	$(BIN)/pytest

# Kills, freezes and outages at full length, one after the other: about twenty minutes on two cores. And what a search asks of
# its database, which must not grow.
test-chaos: setup
	$(BIN)/pytest --numprocesses=0 --durations=20 -m chaos tests/acceptance
	$(BIN)/python -m benchmarks.storage

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The versions that the tests passed with; run after a deliberate upgrade.
constraints: setup
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >constraints.txt

clean:
	rm -rf $(VENV) demo build *.egg-info
