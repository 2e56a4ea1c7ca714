# What everything else begins with: the environment .venv, made from pyproject.toml.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python -m
REPORT ?= runs/digits/report.html

.PHONY: setup demo test test-long check check-report benchmark clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --editable ".[dev]"
	touch $@

demo: setup ## The whole path on scikit-learn's digits, into runs/digits
	$(RUN) experiments run digits

test: setup ## The tests, a process a core
	$(RUN) pytest -n auto --dist loadfile

test-long: setup ## The tests that take minutes
	$(RUN) pytest -m long

check: setup ## Lint, format and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

check-report: setup ## Opens $(REPORT) in a headless Chromium or Chrome: figures, scripts, sorting
	$(RUN) experiments.check_report $(REPORT)

benchmark: setup ## Fails where a ratio of times is clearly worse than the recorded one
	$(RUN) experiments benchmark curvature --baseline experiments/results/benchmark/cpu_width16.json
	$(RUN) experiments benchmark analog --engines fast --baseline experiments/results/benchmark/cpu_analog.json

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
