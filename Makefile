# Keepsake needs Python 3.11 or later; PYTHON=python3.12 make setup chooses one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP = PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml clients/python/pyproject.toml constraints.txt
# Branch coverage in per cent that the tests must reach: what it was when last raised, rounded down.
MIN_COVERAGE := 95

.PHONY: setup setup-dev run test test-pythons lint mutants clean

setup: $(VENV)/.installed

setup-dev: $(VENV)/.installed-dev

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit("Keepsake needs Python 3.11 or later, not " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/pip $(SOURCES)
	$(PIP) -e clients/python -e '.[stack,chat]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/pip $(SOURCES)
	$(PIP) -e clients/python -e '.[stack,chat,rabbitmq,tracing,dev]'
	touch $(VENV)/.installed $@

run: setup
	$(BIN)/ltm up --demo

# On three processes, the slow tests first: much of what takes time is waiting, also on two cores. A file runs on one of them, in order.
test: setup-dev
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --cov --cov-report=term --cov-fail-under=$(MIN_COVERAGE)

# The unit tests on the newest other Python that is installed; EVERY_PYTHON=1 for all.
test-pythons:
	.ci/test-pythons

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Mutation testing of the packages with the most rules; prints the survivors. Takes about half an hour.
mutants: setup-dev
	$(PIP) -e '.[mutants]'
	ln -sfn clients/python/keepsake_client keepsake_client
	trap 'rm -f keepsake_client' EXIT; $(BIN)/mutmut run; $(BIN)/mutmut results

clean:
	rm -rf $(VENV) .venv-* .ltm mutants
