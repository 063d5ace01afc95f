# Each target does its own set-up in .venv; a second run starts at once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m

.DEFAULT_GOAL := help
.PHONY: help demo test lint format conformance clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/.installed  ## train, compress, fine-tune and report a small ResNet on real digits
	$(BIN)/ghostify compress --recipe digits --output runs/digits

test: lint  ## lint, import order, and every test but the long ones
	$(RUN) pytest -n 2 -m "not slow"

lint: $(VENV)/.installed-dev  ## ruff, mypy, import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

conformance: $(VENV)/.installed-dev  ## the long tests, over many networks
	$(RUN) pytest -n 2 -m slow

clean:  ## remove what the tools left behind; .venv and runs/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find ghostify tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(RUN) pip install --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(RUN) pip install --disable-pip-version-check -e '.[dev]'
	@touch $(VENV)/.installed $@
