# Every target sets up .venv by itself when it is missing or older than setup.py or constraints.txt.
# Needed on the machine: make, and a Python >= 3.11 with its venv module.
#
#   make PYTHON=/path/to/python3.12 ...   builds .venv with that Python
#   make test PY=python3                  runs on that interpreter as it is, without any set-up (also: test-gpu, docs,
#                                         style, quality), for machines whose packages are installed already

VENV ?= .venv
CODE := src tests training_scripts benchmarks demo docs setup.py

ifdef PY
export PYTHONPATH := $(CURDIR)/src$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PY := $(VENV)/bin/python
RUNTIME := $(VENV)/.ready-runtime
DEMO := $(VENV)/.ready-demo
DEV := $(VENV)/.ready-dev
DOCS := $(VENV)/.ready-docs
endif

.DEFAULT_GOAL := help
.PHONY: help generate demo test test-gpu docs style quality clean

help:
	@echo "make generate   write turtle.mp4 and its strip of frames with the embedded weights"
	@echo "make test       run the tests that need neither a GPU nor minutes"
	@echo "make test-gpu   run the tests that need a GPU"
	@echo "make demo       open the Gradio demo"
	@echo "make docs       build the documentation into site/"
	@echo "make style      format the code            make quality   check it"
	@echo "make clean      remove build outputs and caches (rm -rf $(VENV) removes the environment)"

generate: $(RUNTIME)
	$(VENV)/bin/vimi generate "A sea turtle glides through a park" --out turtle.mp4

demo: $(DEMO)
	$(VENV)/bin/vimi demo

test: $(DEV)
	$(PY) -m pytest -q -m "not gpu and not slow"

test-gpu: $(DEV)
	$(PY) -m pytest -q -m gpu

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

style: $(DEV)
	$(PY) -m ruff check --fix $(wildcard $(CODE))
	$(PY) -m ruff format $(wildcard $(CODE))

quality: $(DEV)
	$(PY) -m ruff check $(wildcard $(CODE))
	$(PY) -m ruff format --check $(wildcard $(CODE))

clean:
	rm -rf build dist site src/*.egg-info .pytest_cache .ruff_cache .hypothesis turtle.mp4 turtle.png
	find $(wildcard $(CODE)) -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up: one stamp file for each set of extras -------------------------------------------------------------------

PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13 python3.14; do \
	$$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

define set_up
	@if ! $(VENV)/bin/python -m pip --version >/dev/null 2>&1; then \
		test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 with its venv module was found. Install one" \
			"(Debian, Ubuntu: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
		$(PYTHON) -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' || { echo "error: '$(PYTHON)'" \
			"is not a Python >= 3.11 with its venv module" >&2; exit 1; }; \
		echo "Setting up $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); \
	fi
	@echo "Installing vimi_diffusers$(1) and what it needs; the first time takes minutes"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".$(1)"
endef

$(VENV)/.ready-runtime: setup.py constraints.txt
	$(call set_up,)
	@touch $@

$(VENV)/.ready-demo: setup.py constraints.txt
	$(call set_up,[demo])
	@touch $@ $(VENV)/.ready-runtime

$(VENV)/.ready-dev: setup.py constraints.txt
	$(call set_up,[dev])
	@# an oracle of the scheduler's tests, whose one file is read alone: what it asks for is not needed
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt k-diffusion
	@touch $@ $(VENV)/.ready-demo $(VENV)/.ready-runtime

$(VENV)/.ready-docs: setup.py constraints.txt
	$(call set_up,[docs])
	@touch $@ $(VENV)/.ready-runtime
