# `make help` lists the targets.
.DEFAULT_GOAL := help
BIN := .venv/bin
# .venv/installed records the folder, the interpreter and the version for which .venv was created. A virtual environment works
# only in its own folder, so a copied or moved checkout creates it again.
MADE_FOR := $(shell cat .venv/installed 2> /dev/null)
PYTHON ?= $(firstword $(foreach name,$(word 2,$(MADE_FOR)) python3.11 python3.12 python3,$(shell command -v $(name))))
INTERPRETER := $(shell command -v $(PYTHON))
VERSION := $(if $(INTERPRETER),$(shell $(INTERPRETER) -c 'import sys; print("{}.{}".format(*sys.version_info))'))
THIS := $(CURDIR) $(INTERPRETER) $(VERSION)
ARGS ?=
BASE ?= python:3.11-slim
TAG ?= latest
IMAGES := data torch
BILLS ?= build
LOCKS := $(IMAGES) tracker
IMAGE_LOCK = $(BIN)/pip-compile --quiet --strip-extras --generate-hashes --no-annotate --no-emit-index-url \
	--no-emit-find-links --no-emit-trusted-host --constraint requirements.lock
# Requirements of extras without the library's own, which include torch.
EXTRAS = $(BIN)/python -c 'import sys, tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*sorted({line for name in sys.argv[1:] for line in extras[name]}), sep="\n")'
# torch's builds for CPU and for CUDA have the same version, but different hashes and dependencies. The others are 150 MB that
# MLflow needs only for scikit-learn's estimators.
NOT_LOCKED = $(foreach package,torch scikit-learn scipy skops,--unsafe-package $(package))

# Revision of an image, or unknown outside a git checkout.
GIT_SHA = $$(git rev-parse --verify HEAD 2> /dev/null || echo unknown)
GIT_DIRTY = $$(git diff --quiet HEAD > /dev/null 2>&1; case $$? in (0) echo false;; (1) echo true;; (*) echo unknown;; esac)

SBOM = $(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible

.PHONY: help setup run test test-fast lint bench repro images tracker team-server sbom clean lock

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

ifneq ($(MADE_FOR),$(THIS))
.PHONY: .venv/installed
CLEAR := --clear
endif
# setuptools warns about every editable installation.
.venv/installed: pyproject.toml requirements.lock
	$(if $(filter 3.11 3.12,$(VERSION)),,$(error Python 3.11 or 3.12 is needed, but $(or $(PYTHON),python3) is $(if \
		$(VERSION),Python $(VERSION),missing): install one of them, or name it, e.g. make setup PYTHON=/usr/bin/python3.11))
	$(INTERPRETER) -m venv $(CLEAR) .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --requirement requirements.lock
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --no-deps --editable .
	$(BIN)/python -m bebygan.pretrained
	echo "$(THIS)" > $@

setup: .venv/installed ## Install everything into .venv

run: setup ## Run the whole pipeline here; ARGS="--set train.iterations=50" changes it
	$(BIN)/bebygan run $(ARGS)

test: setup ## Run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: setup ## Run the tests that take less than ten seconds each
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

lint: setup ## Check style, types and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## Measure what the README claims; writes benchmarks/results.json
	$(BIN)/python -m benchmarks.bench $(ARGS)

# DVC refuses to run outside a git checkout, such as in an unpacked archive, unless it is configured.
repro: export PATH := $(CURDIR)/$(BIN):$(PATH)
repro: setup ## Run the same steps as DVC stages
	@[ -e .git ] || git rev-parse --git-dir > /dev/null 2>&1 || dvc config --local core.no_scm true
	dvc repro $(ARGS)

# Packages that the images' Dockerfiles install. This machine's pip downloads them, with its index, proxy and certificates.
infra/images/wheels/fetched: $(LOCKS:%=infra/images/%.lock) .venv/installed
	rm -f infra/images/wheels/*
	$(BIN)/pip download -qq --no-deps --require-hashes $(LOCKS:%=--requirement infra/images/%.lock) --dest $(@D)
	$(BIN)/pip download -qq --constraint requirements.lock --dest $(@D) torch "setuptools>=77,<82" wheel
	touch $@

infra/images/weights/fetched: .venv/installed
	cp $$($(BIN)/python -m bebygan.pretrained | sed 's/.*: //') $(@D)
	touch $@

images: infra/images/wheels/fetched infra/images/weights/fetched ## Build the images of the steps; BASE=, TAG=
	for image in $(IMAGES); do docker build --tag bebygan-$$image-python:$(TAG) --file infra/images/$$image.Dockerfile \
		--build-arg BASE=$(BASE) --build-arg GIT_SHA=$(GIT_SHA) --build-arg GIT_DIRTY=$(GIT_DIRTY) . || exit; done

tracker: infra/images/wheels/fetched ## Build the image of the tracking server
	docker build --tag bebygan-tracker:$(TAG) --file infra/images/tracker.Dockerfile --build-arg BASE=$(BASE) \
		--build-arg GIT_SHA=$(GIT_SHA) .

team-server: images tracker ## Build what infra/compose.yaml runs
	docker build --tag bebygan-pipeline:$(TAG) --file infra/images/pipeline.Dockerfile \
		--build-arg DATA=bebygan-data-python:$(TAG) --build-arg TORCH=bebygan-torch-python:$(TAG) .

sbom: setup ## Write the images' bills of materials to build/bebygan-*.cdx.json (CycloneDX); BILLS=
	mkdir -p $(BILLS)
	grep '^torch==' requirements.lock | cat infra/images/torch.lock - | $(SBOM) --output-file $(BILLS)/bebygan-torch.cdx.json -
	for lock in data tracker; do $(SBOM) --output-file $(BILLS)/bebygan-$$lock.cdx.json infra/images/$$lock.lock || exit; done

lock: setup ## Write the lock files again
	$(BIN)/pip-compile --quiet --strip-extras --all-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -P torch==2.13.0 --output-file requirements.lock pyproject.toml
	sed -i "s/^\(torch==[0-9.]*\)+cpu/\1/" requirements.lock
	$(EXTRAS) data pipeline | $(IMAGE_LOCK) --allow-unsafe --output-file infra/images/data.lock -
	$(IMAGE_LOCK) $(NOT_LOCKED) --extra train --output-file infra/images/torch.lock pyproject.toml
	$(EXTRAS) tracker | $(IMAGE_LOCK) $(NOT_LOCKED) --output-file infra/images/tracker.lock -
	sed -i '/^# WARNING/,$$d' infra/images/torch.lock infra/images/tracker.lock
	sed -n '/^kfp==/,/[^\\]$$/p' infra/images/data.lock >> infra/images/torch.lock

clean: ## Remove the output of runs and builds, not the environment
	rm -rf workspace build
	rm -f infra/images/wheels/* infra/images/weights/*
