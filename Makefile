# What everything else begins with: the environment .venv, made from pyproject.toml and, for the
# Pythons that have one, a file of the releases that the tests were seen to pass with.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python -m
CONSTRAINTS := .ci/constraints/python3.11.txt .ci/constraints/python3.12.txt
TOOLS := .venv-tools
# Files stay together, and with them what their tests share, until a worker has nothing left.
PARALLEL := -n auto --dist worksteal
# The constraints for the Python of $(VENV), once that is there.
KNOWN = .ci/constraints/python$(shell $(VENV)/bin/python -c \
	'import sys; print("%d.%d" % sys.version_info[:2])').txt
REPORT ?= runs/digits/report.html

.PHONY: setup demo test test-long test-gpu check hooks check-report benchmark clean
.PHONY: docs constraints audit licences dist

setup: $(VENV)/.installed

# pip first: the one that comes with Python is old, and takes no constraints on builds.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	set -e; \
	known=$$($(VENV)/bin/python -c 'import sys; print(".ci/constraints/python%d.%d.txt" % sys.version_info[:2])'); \
	if [ -f $$known ]; then \
		$(RUN) pip install --quiet --constraint $$known --upgrade pip; \
		$(RUN) pip install --quiet --constraint $$known --build-constraint $$known --editable ".[dev]"; \
	else \
		echo "No $$known: installing the newest releases that pyproject.toml allows, untested." >&2; \
		$(RUN) pip install --quiet --upgrade pip; \
		$(RUN) pip install --quiet --editable ".[dev]"; \
	fi
	touch $@

demo: setup ## The whole path on scikit-learn's digits, into runs/digits, with the drift of its chips
	$(RUN) experiments run digits
	$(RUN) experiments drift digits --drift.chips 3 --drift.times 0 20 60 3600 86400 31536000
	$(RUN) experiments report digits

# Those of jaxcurv apart: with every shape in its signatures checked.
test: setup ## The tests, a process a core
	$(RUN) pytest $(PARALLEL) --jaxtyping-packages=jaxcurv,beartype.beartype tests/jaxcurv
	$(RUN) pytest $(PARALLEL) --ignore=tests/jaxcurv

# These with XLA's optimisations, which tests/conftest.py leaves out.
test-long: setup ## The tests that take minutes
	XLA_FLAGS=--xla_cpu_multi_thread_eigen=false $(RUN) pytest -m long

test-gpu: setup ## What only an accelerator can show
	XLA_FLAGS=--xla_cpu_multi_thread_eigen=false $(RUN) pytest -m gpu -rs tests/gpu

check: setup ## Lint, format, types, and who may import whom
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/lint-imports --no-cache

hooks: setup $(TOOLS)/.installed ## The parts of `make check` before each commit (.pre-commit-config.yaml)
	$(TOOLS)/bin/pre-commit install

check-report: setup ## Opens $(REPORT) in a headless Chromium or Chrome: figures, scripts, sorting
	$(RUN) tools.check_report $(REPORT)

# PYTHONPATH: the pages describe this checkout, wherever jaxcurv was installed from.
docs: $(VENV)/.docs ## The documentation site, into build/docs; warnings are errors
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

$(VENV)/.docs: $(VENV)/.installed
	$(RUN) pip install --quiet $(addprefix --constraint ,$(wildcard $(KNOWN))) --editable ".[docs]"
	touch $@

benchmark: setup ## Fails where a ratio of times is clearly worse than the recorded one
	$(RUN) experiments benchmark curvature --baseline experiments/results/benchmark/cpu_width16.json
	$(RUN) experiments benchmark analog --engines fast --baseline experiments/results/benchmark/cpu_analog.json

# Apart from $(VENV): they work while its constraints contradict pyproject.toml, and look at
# nothing but what the project installs.
$(TOOLS)/.installed: .ci/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --requirement .ci/tools.txt
	touch $@

# Keeps every release in the files that pyproject.toml still allows; UPGRADE=--upgrade keeps none.
constraints: $(TOOLS)/.installed ## Writes the constraints again, for Linux; pip, which installs them, is one
	set -e; for file in $(CONSTRAINTS); do \
		version=$${file#*python}; \
		echo pip | $(TOOLS)/bin/uv pip compile --quiet pyproject.toml - --extra dev --extra docs $(UPGRADE) \
			--python-platform linux --python-version $${version%.txt} --no-annotate \
			--custom-compile-command "make constraints" --output-file $$file; \
	done

audit: $(TOOLS)/.installed ## Fails where a release in the constraints has a known vulnerability
	failed=0; for file in $(CONSTRAINTS); do \
		$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip --requirement $$file || failed=1; \
	done; exit $$failed

# Of an environment with torch's CUDA build: the table lists NVIDIA's packages too.
licences: $(VENV)/.docs $(TOOLS)/.installed ## Writes the table of licences; fails at one that is not allowed
	$(TOOLS)/bin/pip-licenses --python $(VENV)/bin/python --output-file .ci/licences.csv

dist: $(TOOLS)/.installed ## A wheel and a source distribution into build/dist; fails where their metadata are wrong
	rm -rf build/dist
	$(TOOLS)/bin/python -m build --outdir build/dist
	$(TOOLS)/bin/twine check --strict build/dist/*

clean:
	rm -rf $(VENV) $(TOOLS) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .cache
