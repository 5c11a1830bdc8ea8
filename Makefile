# Two commands on a fresh machine that has python3 and make: `make demo` and `make test`. Each sets itself up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# On few cores, waiting threads that spin take the time of those that work.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0

.PHONY: demo test test-chaos test-compose chromium setup lint tests format constraints clean

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
	$(BIN)/bandit -q -c pyproject.toml -r hpo trainer storage

tests: setup
	$(BIN)/pytest

# Kills, freezes and outages at full length, one after the other: about twenty-five minutes on two cores. And what a search asks of
# its database, which must not grow.
test-chaos: setup
	$(BIN)/pytest --numprocesses=0 --durations=20 -m chaos tests/acceptance
	$(BIN)/python -m benchmarks.storage

# The compose stack on a real Docker engine. Where no images can be pulled, STANDINS=make-base-images.sh names a script that starts
# an engine and makes stand-ins of the base images (as root).
test-compose: setup
	$(STANDINS)
	$(BIN)/pytest --numprocesses=0 --durations=5 -m compose tests/acceptance

# The browser that the tests of the dashboard drive, where it is missing and may be installed.
chromium:
	command -v chromium >/dev/null || test "$$(id -u)" != 0 || (apt-get update -qq && apt-get install -y -qq chromium >/dev/null)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The versions that the tests passed with; run after a deliberate upgrade.
constraints: setup
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >constraints.txt

clean:
	rm -rf $(VENV) demo build *.egg-info
