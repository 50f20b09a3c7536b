# make demo · make test · make docs · make explorer-model · make share · make prepare · make docker · make clean · make help
# Needs Python 3.10 or later (with its venv module) and make. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# Tests run in as many processes as there are cores, each with one thread; more than 8 would need much memory.
WORKERS := $(shell n=`getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2`; [ $$n -gt 8 ] && echo 8 || echo $$n)

.PHONY: help demo test docs explorer-model share prepare docker clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/run-time.installed  ## train a small GPT on this machine and read its stories, in under 6 minutes
	@$(BIN)/gptlearn demo

test: $(VENV)/dev.installed  ## run every chapter and every test (ARGS="..." go to pytest)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxschedchunk 1 $(ARGS)

colab: $(VENV)/dev.installed .colab/colab.installed  ## run every chapter alone, as Colab does (PYTHON=python3.13, the one of Colab; 6 GB, half an hour)
	@$(BIN)/python -m pytest -q tests/test_colab.py --colab .colab/bin/python $(ARGS)

docs: $(VENV)/dev.installed  ## build the site into _docs (needs Quarto)
	@command -v quarto >/dev/null || { echo "make docs needs Quarto 1.5 or later on the PATH: \
	get it from https://quarto.org/docs/get-started/ and run make docs again."; exit 1; }
	@rm -rf _proc _docs
	@PATH="$(CURDIR)/$(BIN):$$PATH" nbdev_docs
	@$(BIN)/python -m pytest -q tests/test_site.py tests/test_explorer.py --site _docs

explorer-model: $(VENV)/run-time.installed  ## train the model of the site's explorer anew (3 minutes), and write down the grammar
	@rm -rf runs/explorer nbs/explorer/demo.safetensors
	@$(BIN)/gptlearn train --config demo --steps 1500 --train.seed 0 --run runs/explorer
	@$(BIN)/gptlearn export --run runs/explorer --to explorer --dtype float16 --out nbs/explorer/demo.safetensors
	@$(BIN)/python -c "import json; from gptlearn.tales import tale_rules, tale_slots; \
	print(json.dumps(dict(rules=tale_rules, slots=tale_slots), indent=0))" > nbs/explorer/tales.json

share:  ## draw the picture that a shared link shows (needs Chromium)
	@chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1200,630 \
	--screenshot=nbs/images/share.png "file://$(CURDIR)/nbs/images/share.svg" 2>/dev/null

prepare: $(VENV)/dev.installed  ## before a commit: export the modules, clean the notebooks, write README.md (needs Quarto)
	@PATH="$(CURDIR)/$(BIN):$$PATH" nbdev_export
	@PATH="$(CURDIR)/$(BIN):$$PATH" nbdev_clean
	@if command -v quarto >/dev/null; then rm -rf _proc; PATH="$(CURDIR)/$(BIN):$$PATH" nbdev_readme; \
	else echo "README.md was not written: that needs Quarto, https://quarto.org/docs/get-started/"; fi

docker:  ## build the container that serves a run (VARIANT=cuda for an NVIDIA card)
	docker build -f docker/Dockerfile --build-arg VARIANT=$(or $(VARIANT),cpu) -t gptlearn$(if $(filter cuda,$(VARIANT)),:cuda) .

clean:  ## remove the environment and everything built; data/ and runs/ stay
	rm -rf $(VENV) .colab _proc _docs build dist *.egg-info .pytest_cache .hypothesis nbs/nbdev.yml
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. A stamp says what is installed in it; a change of the requirements makes it stale.
# torch comes first and by itself, because only its download is long enough to want a progress bar.
REQUIREMENTS := settings.ini setup.py constraints.txt
define install
	@echo "Installing $(1) into $(VENV), once."
	@$(PIP) install --quiet -c constraints.txt pip setuptools wheel
	@$(PIP) install -c constraints.txt torch
	@PYTHONWARNINGS=ignore $(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.$(2)'
endef

$(VENV)/run-time.installed: $(REQUIREMENTS) | $(BIN)/pip
	$(call install,gptlearn and what it runs on,)
	@touch $@

$(VENV)/dev.installed: $(REQUIREMENTS) | $(BIN)/pip
	$(call install,gptlearn and its development tools,[dev$(comma)hf$(comma)track$(comma)serve])
	@touch $(VENV)/run-time.installed $@

# Colab's Python and packages, beside ours. On Linux, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves 4 GB of CUDA.
.colab/colab.installed: tests/colab.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' || { echo "Colab has Python 3.13, and $(PYTHON) \
	is another: name one with make colab PYTHON=python3.13"; exit 1; }
	@echo "Installing Colab's packages into .colab, once."
	@$(PYTHON) -m venv --clear .colab
	@.colab/bin/python -m pip --disable-pip-version-check install --quiet -r tests/colab.txt
	@touch $@

comma := ,

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "gptlearn needs Python 3.10 or later, and there is no $(PYTHON) here: \
	install it, or name yours with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "gptlearn needs Python 3.10 or later, and \
	$(PYTHON) is `$(PYTHON) -c 'import platform; print(platform.python_version())'`: name a newer one with make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) came without its venv module: install it \
	(Debian and Ubuntu: apt install python3-venv) and run make again."; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
