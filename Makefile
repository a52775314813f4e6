# `make` lists the targets. `make demo` and `make test` each work alone on a fresh clone: Linux, Python 3.11 and make.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed.stamp
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
UV_VERSION := 0.13.9
TFDLRM_FORKS ?= 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format lock clean serve-fixtures serve-check soak-serving wheel-check

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

venv: $(INSTALLED) ## make .venv from the lock (the targets below do it themselves)

demo: $(INSTALLED) ## rows, training, export and check, from nothing to a served answer; more with ARGS="..."
	@$(BIN)/python -m tfdlrm.pipelines.criteo $(ARGS)

# Commands that tests start are forks of a process that has imported TensorFlow, which saves a fifth of the CPU; with
# TFDLRM_FORKS=0 they are started as users start them.
test: $(INSTALLED) ## run the tests, two files at a time; some of them with ARGS="tests/spec -q"
	@TF_CPP_MIN_LOG_LEVEL=2 TFDLRM_FORKS=$(TFDLRM_FORKS) $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder $(ARGS)

serve-fixtures: $(INSTALLED) ## write small models and models.config into build/serving-fixtures, for any server at /models
	@mkdir -p build
	@TF_CPP_MIN_LOG_LEVEL=2 $(BIN)/python -m tests.serving.fixtures build/serving-fixtures

serve-check: $(INSTALLED) ## ask a server that holds them, case by case: URL=http://host:8501 GRPC=host:8500
	@test -n "$(URL)" || { echo "usage: make serve-check URL=http://host:8501 [GRPC=host:8500]" >&2; exit 2; }
	@TF_CPP_MIN_LOG_LEVEL=2 TFDLRM_SERVE_URL=$(URL) TFDLRM_SERVE_GRPC=$(GRPC) \
		$(BIN)/python -m pytest tests/serving/test_conformance.py -rs $(ARGS)

soak-serving: $(INSTALLED) ## load the local server harder than make test does: bodies, clients, versions
	@TF_CPP_MIN_LOG_LEVEL=2 TFDLRM_SOAK=1 $(BIN)/python -m pytest tests/serving/test_load.py tests/serving/test_fuzz.py $(ARGS)

wheel-check: $(INSTALLED) ## build sdist and wheel, install it with what it declares in a clean environment, run it in an empty folder
	@$(BIN)/python tests/wheel_check.py

lint: $(INSTALLED) ## ruff, its format, and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## resolve setup.py anew into requirements.lock; newer versions with ARGS=--upgrade
	@$(MAKE) --no-print-directory build/lock/bin/python VENV=build/lock
	@build/lock/bin/python -m pip -qq --disable-pip-version-check install uv==$(UV_VERSION)
	@echo "Resolving setup.py for Python 3.11 on Linux x86-64 into requirements.lock"
	@build/lock/bin/uv pip compile setup.py --no-config --quiet --generate-hashes --no-header \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		--extra serving --extra tune --extra beam --extra onnx --extra docs --extra dev --output-file requirements.lock $(ARGS) > /dev/null

clean: ## remove what builds and tools leave behind; .venv, run directories and models stay
	@rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find tfdlrm tests -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: docs docs-check

docs: $(INSTALLED) ## build the documentation site into build/site
	@$(BIN)/python -m mkdocs build --strict --quiet
	@echo "Site: build/site/index.html"

docs-check: $(INSTALLED) ## run every code block of README and docs, those that take long too: some twenty minutes; less with PAGES="README or tutorial"
	@TF_CPP_MIN_LOG_LEVEL=2 TFDLRM_FORKS=$(TFDLRM_FORKS) TFDLRM_DOCS=all $(BIN)/python -m pytest tests/docs/test_blocks.py \
		$(if $(PAGES),-k "$(PAGES)") $(ARGS)

.PHONY: sweep-check

sweep-check: $(INSTALLED) ## long tests of sweeps, then 20 trials, killed once; what they found is judged on rows never seen
	@TF_CPP_MIN_LOG_LEVEL=2 TFDLRM_SOAK=1 $(BIN)/python -m pytest tests/pipelines/test_sweep.py
	@TF_CPP_MIN_LOG_LEVEL=2 $(BIN)/python -m benchmarks.sweep_proof $(ARGS)

# One package of the lock comes as source only: setuptools goes in first, so that building it downloads nothing unhashed.
$(INSTALLED): requirements.lock setup.py pyproject.toml | $(BIN)/python
	@echo "Installing requirements.lock into $(VENV): once, a few minutes"
	@awk '/^[a-z]/ { keep = /^setuptools==/ } keep' requirements.lock > $(VENV)/setuptools.lock
	@$(PIP) install --require-hashes --no-deps -r $(VENV)/setuptools.lock
	@$(PIP) install --require-hashes --no-deps --no-build-isolation --use-pep517 -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3 python; do \
		if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null; then \
			echo "Making $(VENV) with $$(command -v $$python)"; \
			"$$python" -m venv $(VENV) && exit 0; \
			rm -rf $(VENV); \
			echo "$$python could not make $(VENV): install its venv module (on Debian: python3.11-venv)." >&2; exit 1; \
		fi; \
	done; \
	echo "No Python 3.11 to 3.13 found. Install Python 3.11, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	exit 1
