# `make train` runs the main job, `make test` the tests; each sets up what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
RUN := runs/unet_phantoms
MINIMAL := .venv-minimal
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: help train test test-all test-minimal lint format clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

train: $(VENV)/.core  ## train the quick-start model on generated frames and build its Hub repository
	$(LAUNCH) training/run.py unet_phantoms --output_dir $(RUN)
	$(BIN)/python -m hub_repos.build $(RUN) $(RUN)/repository

test: $(VENV)/.test  ## run the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q -m "not slow"

test-all: $(VENV)/.test  ## run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

test-minimal: $(VENV)/.test $(MINIMAL)/.done  ## load a built repository with torch, torchvision, timm, transformers, pillow alone
	MINIMAL_PYTHON=$(MINIMAL)/bin/python $(BIN)/python -m pytest -q tests/hub_repos/test_load.py

lint: $(VENV)/.test  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test  ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove environments and runs
	rm -rf $(VENV) $(MINIMAL) runs

$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) -c constraints.txt -e '.[test]'
	touch $@

$(MINIMAL)/.done: constraints.txt
	$(PYTHON) -m venv $(MINIMAL)
	$(MINIMAL)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch torchvision timm transformers pillow
	touch $@
