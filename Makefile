# `make train` runs the main job, `make test` the tests; each sets up what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
RUN := runs/unet_phantoms
KEPT := hub_repos/published/unet_polyps
MODEL ?= $(KEPT)/repository
LABEL_STUDIO_ML ?= git+https://github.com/HumanSignal/label-studio-ml-backend
# older versions of transformers, and what they need apart from constraints.txt
OLDER := 4.57 5.5
PINS_4.57 := transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2
PINS_5.5 := transformers==5.5.4 huggingface_hub==1.33.0 tokenizers==0.22.2 httpx==0.28.1 httpcore==1.0.9
# tests of the checkout with an older transformers: the main environment's packages, its editable install among them
define CONTRACT
import glob, site, sys
site.addsitedir(glob.glob('$(VENV)/lib/*/site-packages')[0])
import pytest
sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[1:]]))
endef
export CONTRACT
LOADS := $(addprefix load-,minimal $(OLDER))
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: help train predict demo bench bench-gpu faults test test-long test-all test-lowest test-minimal test-compat test-newest test-label-studio lint format clean $(LOADS)

help:  ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-17s %s\n", $$1, $$2}'

train: $(VENV)/.core  ## train the quick-start model on generated frames and build its Hub repository
	$(LAUNCH) training/run.py unet_phantoms --output_dir $(RUN)
	$(BIN)/hub-unets build $(RUN) $(RUN)/repository

predict: $(VENV)/.predict $(filter $(KEPT)/repository,$(MODEL))  ## mark the polyps in IMAGE=file-or-folder (MODEL=folder-or-id)
	@test -n "$(IMAGE)" || { echo "error: name an image or a folder of images: make predict IMAGE=image.jpg" >&2; exit 1; }
	$(BIN)/hub-unets predict $(MODEL) "$(IMAGE)" "predictions/$(basename $(notdir $(IMAGE:/=)))" --trust_remote_code true

demo: $(VENV)/.demo $(filter $(KEPT)/repository,$(MODEL))  ## try a model in the browser (MODEL=folder-or-id)
	$(BIN)/hub-unets demo $(MODEL)

$(KEPT)/repository: $(VENV)/.core $(wildcard $(KEPT)/*.json $(KEPT)/*.safetensors modeling/*.py configuration/*.py)
	$(BIN)/hub-unets build $(KEPT) $@
	touch $@

test: $(VENV)/.test  ## run the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q -m "not long and not slow"

test-long: $(VENV)/.test  ## run those that take a few minutes more: sweeps, the wheel, compiled networks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q -m "long and not slow"

test-all: $(VENV)/.test  ## run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

bench: $(VENV)/.test  ## measure speed beside other libraries (DATA=folder MODEL=run, else generated and random)
	$(BIN)/hub-unets bench $(if $(DATA),--data $(DATA)) $(if $(filter command line,$(origin MODEL)),--model $(MODEL)) $(BENCH)

bench-gpu: $(VENV)/.test  ## measure speed on CUDA devices in eight minutes (DATA=folder WEIGHTS=file), write gpu.md
	$(BIN)/hub-unets bench-gpu $(if $(DATA),--data $(DATA)) $(if $(WEIGHTS),--backbone_weights $(WEIGHTS))

faults: $(VENV)/.test  ## try to break things, and write tests/README.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults

test-lowest: $(VENV)/.test .venv-lowest/.done  ## train, build, verify, predict with the lowest versions of pyproject.toml
	WHEEL_PYTHON=.venv-lowest/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_wheel.py

test-minimal: load-minimal  ## load built repositories with torch, torchvision, timm, transformers, pillow alone

test-compat: $(OLDER:%=load-%)  ## load built repositories with older versions of transformers

test-newest: $(VENV)/.test  ## test models and built repositories with the registry's newest transformers
	$(BIN)/python -m venv --clear --without-pip .venv-newest
	cd .venv-newest/lib/*/site-packages && \
		echo "import site; site.addsitedir('$$(ls -d $(CURDIR)/$(VENV)/lib/*/site-packages)')" > main.pth
	PIP_PYTHON=.venv-newest $(PIP) --upgrade transformers
	.venv-newest/bin/python -c "import transformers; print('transformers', transformers.__version__)"
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n 2 --dist worksteal -q -m "not slow" \
		tests/configuration tests/modeling tests/hub_repos/test_load.py

test-label-studio: $(VENV)/.test  ## test the Label Studio backend, beside the older packages that it needs
	$(BIN)/python -m venv --clear --without-pip .venv-label-studio
	cd .venv-label-studio/lib/*/site-packages && \
		echo "import site; site.addsitedir('$$(ls -d $(CURDIR)/$(VENV)/lib/*/site-packages)')" > main.pth
	PIP_PYTHON=.venv-label-studio $(PIP) label-studio-sdk 'Flask>2.3' 'colorama~=0.4' 'semver~=3.0.2'
	PIP_PYTHON=.venv-label-studio $(PIP) --no-deps "$(LABEL_STUDIO_ML)"
	OMP_NUM_THREADS=1 .venv-label-studio/bin/python -m pytest -q tests/hub_repos/annotate/test_label_studio.py

$(LOADS): load-%: $(VENV)/.test .venv-%/.done
	LOAD_PYTHON=.venv-$*/bin/python LOAD_TRANSFORMERS=$(filter $*,$(OLDER)) OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n 2 --dist worksteal -q tests/hub_repos/test_load.py
	$(if $(filter 5.5,$*),.venv-$*/bin/python -c "$$CONTRACT" tests/training/fit/test_contract.py)

lint: $(VENV)/.test  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test  ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove environments and runs
	rm -rf $(VENV) $(LOADS:load-%=.venv-%) .venv-lowest .venv-newest .venv-label-studio runs

$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/.predict: $(VENV)/.core
	$(PIP) -c constraints.txt -e '.[coco]'
	touch $@

$(VENV)/.demo: $(VENV)/.core
	$(PIP) -c constraints.txt -e '.[demo]'
	touch $@

.venv-minimal/.done: $(VENV)/.core constraints.txt
	$(BIN)/python -m venv --without-pip $(@D)
	PIP_PYTHON=$(@D) $(PIP) -c constraints.txt torch torchvision timm transformers pillow
	touch $@

.venv-lowest/.done: $(VENV)/.test pyproject.toml
	$(BIN)/python -m venv --clear --without-pip $(@D)
	$(BIN)/uv pip install -q --python $(@D)/bin/python --resolution lowest-direct -r pyproject.toml --extra coco
	touch $@

.venv-%/.done: $(VENV)/.core Makefile  # the packages that PINS_% does not name are those of the main environment
	$(BIN)/python -m venv --clear --without-pip $(@D)
	PIP_PYTHON=$(@D) $(PIP) --no-deps $(PINS_$*)
	cd $(@D)/lib/*/site-packages && ls -d $(CURDIR)/$(VENV)/lib/*/site-packages > main.pth
	touch $@
