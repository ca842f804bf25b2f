# `make demo` and `make test` do everything from a fresh clone: environment, pinned set, work.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Two OpenMP threads that wait for each other collapse on a busy machine: tests use one.
TEST_ENV := OMP_NUM_THREADS=1 CL_LORA_CACHE=$(CURDIR)/.cache

.PHONY: demo test lint docs attack mutate install clean

demo: $(VENV)/.demo
	$(BIN)/cl-lora demo

test: $(VENV)/.test lint
	$(TEST_ENV) $(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages of docs/ and the Python API as a web site. A warning is an error; a test builds it too.
docs: $(VENV)/.docs
	$(BIN)/mkdocs build -q
	@echo "Open build/site/index.html"

# Hundreds of damaged files, hostile inputs, wrong settings and full disks; over an hour on one core.
attack: $(VENV)/.test
	$(TEST_ENV) PYTHONPATH=tests $(BIN)/python -m attack

# Does a test fail when the code changes by a little? Not in CI: an hour on one core. MUTANTS=all
# tries every mutant, JOBS=4 four at once.
MUTANTS ?= 400
JOBS ?= 1
mutate: $(VENV)/.mutate
	$(TEST_ENV) $(BIN)/python tools/mutate.py --mutants $(MUTANTS) --jobs $(JOBS)

install: $(VENV)/.demo

$(VENV)/.demo: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.test: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/.docs: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

$(VENV)/.mutate: $(VENV)/.test
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[mutate]'
	touch $@

clean:
	rm -rf $(VENV) .cache build dist *.egg-info
