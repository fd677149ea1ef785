# Two commands do everything on a fresh Linux machine with Python ≥ 3.11: make demo, make test.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Test files at a time, one more than two cores: many tests wait for processes. make test WORKERS=1.
WORKERS ?= 3
export HF_HUB_OFFLINE := 1
# The tests start many processes, and each would compile our modules again where bytecode is not kept.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install demo test simulated test-versions lint bench docs notebook image clean

help:  ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

# A half-made .venv has a python and no pip: making it again completes it, and leaves what is in it.
define environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Kosmos needs Python 3.11 or newer, this is " + sys.version)'
@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -c 'import ensurepip, venv' 2> /dev/null \
  || { echo "This Python makes no virtual environments. Install its venv (Debian, Ubuntu: apt install python3-venv), then make again."; exit 1; }
@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
endef

# The stamps are newer than what they depend on when the environment is up to date.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(environment)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# The demo needs a part of that; where everything is installed, that is what it uses.
$(VENV)/.installed-demo: pyproject.toml constraints.txt
	$(environment)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo]"
	touch $@

install: $(VENV)/.installed  ## create .venv and install everything

demo: $(if $(wildcard $(VENV)/.installed),install,$(VENV)/.installed-demo)  ## the whole at toy size, from corpora to a chat; about ten minutes on two cores
	$(BIN)/kosmos demo

test: install  ## the whole test suite, three files at a time, the longest first
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

simulated: install  ## what a GPU and 64 ranks would do, without them: graphs, kernels, bytes, memory; minutes
	$(BIN)/python -m pytest -m simulated tests/simulated

# What differs is laid over the environment, a few packages for each end, so that the rest is not installed three times.
$(VENV)/versions/%/.installed: tests/versions/%.txt $(VENV)/.installed
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --no-deps --target $(@D) --requirement $<
	touch $@

test-versions: $(VENV)/versions/oldest/.installed $(VENV)/versions/newest/.installed  ## the model's tests with the oldest and the newest torch and transformers
	@status=0; for end in oldest newest; do \
	  (export PYTHONPATH=$(CURDIR)/$(VENV)/versions/$$end$${PYTHONPATH:+:$$PYTHONPATH}; \
	  echo "== $$end: $$($(BIN)/python -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)')"; \
	  $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests/kosmos tests/train/test_doors.py) || status=1; \
	done; exit $$status

lint: install  ## style, format, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install  ## speed against peers, ratios from one process each; the loader's after make demo
	@set -e; run() { echo "== $$*"; $(BIN)/python tests/benchmarks/bench_"$$@"; }; \
	run model.py; run objectives.py; run train.py; run ahead.py; run eval.py; \
	if test -d runs/demo/processor; then \
	  run data_loader.py photos runs/demo/processor; run data_scale.py index runs/demo/processor; \
	else echo "== loader: left out, it takes the vocabulary of the demo (make demo)"; fi; \
	if test -d corpora/docs/warc; then run extraction.py corpora/docs/warc/*.warc.gz; \
	else echo "== extraction: left out, it takes the pages of a recipe (kosmos data make docs --out corpora/docs)"; fi; \
	if command -v nvidia-smi > /dev/null; then $(BIN)/python tests/benchmarks/gpu.py; fi

docs: install  ## the documentation site, in build/site
	$(BIN)/python docs/build.py
	@echo "build/site: $(BIN)/python -m http.server --directory build/site"

notebook: install  ## open the chat notebook (train the demo first)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[notebook]"
	$(BIN)/jupyter lab notebooks/chat.ipynb

image: ## build the container image with docker, podman or buildah, whichever is there
	docker/build.sh

clean:  ## remove caches and build products, keep .venv, corpora and runs
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
