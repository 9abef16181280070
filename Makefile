# The two commands: `make demo` shows what mlcloud does, `make test` checks that it does it.
# Everything is installed into .venv, and nothing outside this folder is changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# the first tutorial is executed by tests/notebooks, which look at what it shows
NOTEBOOKS := $(filter-out notebooks/01_% notebooks/05_%,$(wildcard notebooks/*.ipynb))
LONG_NOTEBOOKS := $(wildcard notebooks/05_*.ipynb)
WORKERS ?= 2

# JupyterLab's part of it is built with the install, and again when its sources have changed.
LABEXTENSION := $(VENV)/.labextension
LABSOURCES := $(wildcard labextension/*.json labextension/yarn.lock labextension/src/*.ts \
  labextension/src/*/*.ts labextension/src/*/*/*.ts labextension/style/*)

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow lint bench coverage lab watch pictures clean

help:
	@echo "make demo       train a model in %%remote cells on a spot node that is taken away"
	@echo "make test       checks, tests and tutorials"
	@echo "make test-slow  the tests that take minutes"
	@echo "make lint       ruff, mypy --strict, import-linter"
	@echo "make bench      the side-by-side measurements"
	@echo "make coverage   which library classes survive a move (half an hour, gigabytes of packages)"
	@echo "make lab        JupyterLab with mlcloud"
	@echo "make watch      build its extension again with each change of its sources"
	@echo "make pictures   the README's screenshots, into docs/"
	@echo "make venv       only install, into $(VENV) (PYTHON=... picks the interpreter)"
	@echo "make clean      remove what the others made"

venv: $(STAMP)

# torch comes first: the constraint picks its build before anything else can ask for another, and
# an old pip takes minutes to resolve the storage stack.
$(STAMP): pyproject.toml constraints-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "mlcloud needs Python >= 3.10, and $(PYTHON) is not:" \
	    "make PYTHON=python3.12 ... picks another"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=26"
	$(BIN)/python -m pip install --quiet --constraint constraints-dev.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints-dev.txt --editable ".[dev]"
	@touch $@

$(LABEXTENSION): $(STAMP) $(LABSOURCES)
	$(BIN)/python labextension/hatch_build.py
	@touch $@

demo: $(STAMP)
	$(BIN)/python notebooks/demo.py

# on a cluster of their own, ended whatever happens
define execute
	home=$$(mktemp -d) && export MLCLOUD_HOME=$$home; \
	  $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 --timeout=900 $(1); code=$$?; \
	  $(BIN)/mlcloud down && rm -rf $$home; exit $$code
endef

test: lint $(LABEXTENSION)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"
	@$(call execute,-n $(WORKERS) $(NOTEBOOKS))

# Azure's object store, for the tests of it: with npm only, else they are skipped.
AZURITE := $(VENV)/node/node_modules/.bin/azurite-blob
$(AZURITE): $(STAMP)
	-npm install --silent --no-audit --no-fund --prefix $(VENV)/node azurite@3

# JupyterHub and its proxy, for the test behind them: with npm only, else it is skipped. It has an
# environment beside this one, whose packages it sees: it brings aiodns, which would change how
# everything else here finds addresses.
HUB := $(VENV)/hub/bin/jupyterhub
PACKAGES = $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
$(HUB): $(STAMP)
	-npm install --silent --no-audit --no-fund --prefix $(VENV)/node configurable-http-proxy@5
	$(BIN)/python -m venv $(VENV)/hub
	echo "$(PACKAGES)" > "$$($(VENV)/hub/bin/python -c \
	  'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	$(VENV)/hub/bin/python -m pip install --quiet "jupyterhub>=5,<7"

test-slow: $(STAMP) $(LABEXTENSION) $(AZURITE) $(HUB)
	$(BIN)/python -m pytest -m slow --timeout=1800
	@$(call execute,$(LONG_NOTEBOOKS))

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(LABEXTENSION)
	@set -e; for each in $(filter-out benchmarks/coverage%,$(wildcard benchmarks/*.py)); do \
	  echo "== $$each"; $(BIN)/python $$each; done

coverage: $(STAMP)
	$(BIN)/python benchmarks/coverage.py

lab: $(LABEXTENSION)
	$(BIN)/jupyter lab notebooks

# The README's pictures, of a real cluster in a real browser.
pictures: $(LABEXTENSION)
	MLCLOUD_PICTURES=docs $(BIN)/python -m pytest -m slow tests/browser/test_pictures.py

# Beside a JupyterLab that runs: each change of a source is built, and there when the page is loaded.
watch: $(STAMP)
	rm -f $(LABEXTENSION)
	$(BIN)/python labextension/hatch_build.py --develop
	cd labextension && PATH="$(abspath $(BIN)):$$PATH" jlpm watch

clean:
	rm -rf labextension/node_modules labextension/lib mlcloud/labserver/labextension
	rm -rf $(VENV) .demo build dist *.egg-info notebooks/out benchmarks/out \
	  .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
