# What everything else begins with: the environment .venv, made from pyproject.toml.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python -m

.PHONY: setup demo test test-long check clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --editable ".[dev]"
	touch $@

demo: setup ## The whole path on scikit-learn's digits, into runs/digits
	$(RUN) experiments run digits

test: setup ## The tests
	$(RUN) pytest

test-long: setup ## The tests that take minutes
	$(RUN) pytest -m long

check: setup ## Lint, format and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
