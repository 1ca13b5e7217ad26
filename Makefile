# Everything sets itself up: Python 3.11 or newer, make and a package index are enough.
# Another interpreter: make test PYTHON=/path/to/python3.12

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Extra arguments, e.g. make unit ARGS="-k actors -x"
ARGS ?=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv demo test lint types unit test-all-pythons test-backends backend-table fuzz chaos bench bench-check format clean

help:  ## show this list
	@echo "taskloom: make <target>"
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

venv:  ## make or update the virtual environment .venv
	@command -v "$(PYTHON)" >/dev/null || { \
	    echo "make: no '$(PYTHON)' found; name a Python >= 3.11: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: taskloom needs Python >= 3.11, but '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1);" \
	         "choose another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" tools/environment.py $(VENV) --extras dev,demo

demo: venv  ## run the image pipeline: classify many images, e-mail the results
	@$(PY) -m examples.image_pipeline $(ARGS)

test: lint types unit test-all-pythons  ## lint, types and all tests, on every CPython that is installed

lint: venv  ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: venv  ## mypy, strict, on src/
	$(PY) -m mypy

unit: venv  ## all tests, on one Python
	@$(PY) tools/pythons.py here $(ARGS)

test-all-pythons: venv  ## all tests, on every other CPython >= 3.11 that is installed
	@$(PY) tools/pythons.py others $(ARGS)

# A test there may wait for minutes before it gives up, on a machine that is busy with other things.
ON_BACKENDS := .venv-backends/bin/python -m pytest -q -o faulthandler_timeout=600

test-backends: venv  ## one suite on every backend, and tests on a real Ray and Dask, in an environment that has them
	@$(PY) tools/environment.py .venv-backends --extras test,ray,dask
	@$(ON_BACKENDS) tests/conformance --backends all $(ARGS)
	@$(ON_BACKENDS) tests/on_clusters $(ARGS)

# The results themselves: make test-backends ARGS="--matrix docs/backends.json"
backend-table: venv  ## write the table in docs/backends.md from docs/backends.json
	@$(PY) tools/backend_table.py

# Which random sessions, e.g. make fuzz SEEDS=2000:1000000
SEEDS ?= 2000:12000

fuzz: venv  ## random sessions in virtual time; a failing one is cut down and printed
	@$(PY) tests/core/loom_fuzz.py $(SEEDS)

chaos: venv  ## drivers and workers die in all ways: right answers, nothing left (CHAOS_S=180: shorter)
	@$(PY) -m tests.chaos.driver_deaths
	@$(PY) tests/chaos/chaos_run.py $(ARGS)

bench: venv  ## the benchmarks; results go to the terminal; ARGS="--save NAME" keeps them
	@$(PY) -m benchmarks $(ARGS)

bench-check: venv  ## fail when a ratio has fallen by more than 15 % since the committed result
	@$(PY) -m benchmarks.check $(ARGS)

format: venv  ## let ruff put the code in order
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove the environments, the caches and what was built
	rm -rf .venv .venv-3.* .venv-backends build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests tools examples benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
