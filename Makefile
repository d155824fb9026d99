# One command each. `make` alone lists them. Everything runs in .venv, which the first target that needs it makes and fills.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
SCALE ?= micro
SEEDS ?= 1
BIN := $(CURDIR)/.venv/bin
READY := .venv/.installed
PEERS := .venv-peers/.installed

# A scale is a folder with a params.yaml and a dvc.yaml of its own: micro is this one, the others are in profiles/.
ONE_SEED := $(if $(filter micro,$(SCALE)),.,$(patsubst %/params.yaml,%,$(wildcard profiles/$(SCALE)/params.yaml)))
ifeq ($(ONE_SEED),)
$(error SCALE=$(SCALE) is not a scale; choose micro, laptop or paper, or write profiles/$(SCALE)/params.yaml)
endif
FOLDER := $(ONE_SEED)$(if $(filter-out 1,$(SEEDS)),/profiles/seeds-$(SEEDS))

# DVC's stages call `bitdistiller`, so the environment comes first on the path. Only the paper scale needs the hub.
export PATH := $(BIN):$(PATH)
ifeq ($(filter paper%,$(SCALE)),)
export HF_HUB_OFFLINE ?= 1
endif

# Every stage imports torch; without bytecode on disk each one compiles it anew.
unexport PYTHONDONTWRITEBYTECODE

# One worker a core; tests/conftest.py keeps each to one thread. In the order of files: by number of tests, the long modules with few come last
# and one worker waits for the other.
PYTEST := .venv/bin/pytest -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder

.PHONY: help setup reproduce peers report docs pretrain benchmark test test-all lint

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## make .venv and fetch the pinned data, after which no network is needed
	.venv/bin/bitdistiller fetch

reproduce: $(READY) ## run the pipeline of a scale and print its verdicts (SCALE=micro, laptop, paper or a folder of profiles/; SEEDS=3)
	.venv/bin/bitdistiller fetch
ifneq ($(SEEDS),1)
	@cd $(ONE_SEED) && bitdistiller seeds $(SEEDS)
endif
	@cd $(FOLDER) && bitdistiller check
	@cd $(FOLDER) && bitdistiller reproduce
	@cd $(FOLDER) && bitdistiller verdicts

# Scales that compare with other people's quantizers need these in an environment of their own.
PEERS_laptop := $(PEERS)
PEERS_paper-llama2 := $(PEERS)
PEERS_paper-code := $(PEERS)
PEERS_paper-math := $(PEERS)
reproduce: $(PEERS_$(SCALE))

peers: $(PEERS) ## make the environment of other people's quantizers (GPTQ, HQQ, AutoRound)

report: $(READY) ## redraw tables, figures and report of a scale from its committed results
	cd $(FOLDER) && bitdistiller report

docs: $(READY) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

pretrain: $(READY) ## train the micro models again from scratch (about an hour)
	.venv/bin/bitdistiller fetch
	.venv/bin/dvc repro pretrain/dvc.yaml
	cp -r pretrain/artifacts/models/. bitdistiller/models/weights/

benchmark: $(READY) ## time and memory of a step, the clipping search and decoding beside their obvious versions, and of stages beside their plan
	.venv/bin/python benchmarks/step.py
	.venv/bin/python benchmarks/clip.py
	.venv/bin/python benchmarks/decode.py
	.venv/bin/python benchmarks/plan.py

test: $(READY) ## run the tests, without the slow ones
	$(PYTEST) -m "not slow"

test-all: $(READY) ## run every test, with 1,000 examples for each property
	$(PYTEST) --hypothesis-profile=deep

lint: $(READY) ## check style and formatting
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# Compiling all of the environment takes as long as the rest of the set-up, and most of it is never imported.
$(READY): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "bitdistiller needs Python 3.11 or newer, and there is no $(PYTHON); name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "bitdistiller needs Python 3.11 or newer, and $(PYTHON) is $$("$(PYTHON)" -V 2>&1); name another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Filling .venv with the versions in constraints.txt (two to three minutes)"
	@"$(BIN)/python" -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

$(PEERS): constraints-peers.txt | $(READY)
	@echo "Filling .venv-peers with the versions in constraints-peers.txt (two to three minutes; one of them wants a C compiler)"
	@.venv-peers/bin/python -m pip --version >/dev/null 2>&1 || "$(BIN)/python" -m venv --clear .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint $< torch transformers gptqmodel hqq auto-round
	@touch $@
