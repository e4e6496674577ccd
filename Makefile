# make help: what there is to make.
.DEFAULT_GOAL := help
PYTHON ?= $(firstword $(shell command -v python3.11 python3))
BIN := .venv/bin
ARGS ?=

.PHONY: help setup run test test-fast lint bench repro clean lock

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	$(BIN)/python -m components.common.weights vgg16 alexnet lpips-alex
	touch $@

setup: .venv/installed ## Install everything into .venv

run: setup ## Run the whole pipeline here; ARGS="--set train.iterations=50" changes it
	$(BIN)/bebygan run $(ARGS)

test: setup ## Run all tests
	$(BIN)/python -m pytest $(ARGS)

test-fast: setup ## Run the tests that take less than ten seconds each
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

lint: setup ## Check style, types and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## Measure what the README claims; writes benchmarks/results.json
	$(BIN)/python -m benchmarks.bench $(ARGS)

repro: setup ## Run the same steps as DVC stages
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro $(ARGS)

lock: setup ## Write requirements.lock anew
	$(BIN)/pip-compile --quiet --strip-extras --all-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -P torch==2.13.0 --output-file requirements.lock pyproject.toml

clean: ## Remove what runs left behind, not the environment
	rm -rf workspace
