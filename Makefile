# Two commands do everything on a fresh Linux machine with Python ≥ 3.11: make demo, make test.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1

.PHONY: help install demo test lint bench notebook image clean

help:  ## show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# The stamp is newer than what it depends on when the environment is up to date.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Kosmos needs Python 3.11 or newer, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

install: $(VENV)/.installed  ## create .venv and install everything

demo: install  ## corpus, training, evaluation and chat on real images; about ten minutes on two cores
	$(BIN)/kosmos demo

test: install  ## the whole test suite
	$(BIN)/python -m pytest

lint: install  ## style, format, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install  ## speed against peers, ratios from one process each
	@set -e; for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file; done

notebook: install  ## open the chat notebook (train the demo first)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[notebook]"
	$(BIN)/jupyter lab notebooks/chat.ipynb

image: ## build the container image with docker, podman or buildah, whichever is there
	docker/build.sh

clean:  ## remove caches and build products, keep .venv, corpora and runs
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
