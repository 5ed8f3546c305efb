.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: help setup demo test test-all faults gpu wheel-test docs lint format

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

setup: $(READY) ## make .venv with everything the other targets need

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[all,dev,docs]'
	touch $@

demo: setup ## train MiniLM on the bundled corpus and evaluate it on test (minutes on two cores)
	$(RUN) scripts/train_criteria.py training.epochs=4
	$(RUN) scripts/eval_criteria.py checkpoint=outputs/checkpoints/best_checkpoint.pt

# As many tests at once as there are cores, at most 8, with one thread each.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 8 --dist worksteal

test: setup ## run the tests, without the slow ones
	$(PYTEST) -m "not slow"

test-all: test ## run all tests
	$(PYTEST) -m slow

faults: setup ## inject every fault into the real commands and print what happens
	$(RUN) -m pytest -m faults

gpu: setup ## run the tests and short benchmarks that need a CUDA GPU (under 9 minutes; gpu_results.json)
	$(RUN) tools/gpu_check.py

wheel-test: setup ## build the wheel, install it beside no checkout, train in an empty folder
	$(RUN) -m pytest tests/e2e/test_wheel.py

docs: setup ## build the documentation as a site that works offline (site/index.html)
	$(RUN) tools/reference/write.py
	$(RUN) -m zensical build --clean

lint: setup ## check style, formatting and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: setup ## fix style and formatting
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
