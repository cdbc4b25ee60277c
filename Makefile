# Every target sets itself up: the first call makes .venv and installs what it needs with the versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The head-to-head of `make demo-full`; for instance: make demo-full DEMO_SUITE=mujoco DEMO_SEEDS=1 DEMO_OUT=demo1
DEMO_SUITE ?= quick
DEMO_SEEDS ?= 3
DEMO_OUT ?= demo-full
# auto: as many as there are cores
TEST_PROCESSES ?= auto
# Each process has the tests of whole files: those of a file share what is made once
SIDE_BY_SIDE := -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-full test coverage test-slow test-dist test-lowest mutants lint type docs format bench clean help
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# One process per core, one thread per process: more threads slow these small networks down
demo demo-full test coverage test-slow test-dist test-lowest mutants bench: export OMP_NUM_THREADS = 1

demo: $(VENV)/installed-demo ## train DPI, MDGPS, TRPO and PPO on Reacher-v5, one seed each, in two to three minutes on two cores
	$(BIN)/python -m sb3_dpi.compare run --suite demo --out demo
	@echo "Picture and tables: demo/report.html"

demo-full: $(VENV)/installed-demo ## the same to longer budgets, three seeds each; a second call goes on or reuses
	$(BIN)/python -m sb3_dpi.compare run --suite $(DEMO_SUITE) --seeds $(DEMO_SEEDS) --out $(DEMO_OUT)

test: $(VENV)/installed-tests ## run the tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

coverage: $(VENV)/installed-tests ## run the tests and measure which lines they reach, at a third more time
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --cov --cov-fail-under=90

test-slow: $(VENV)/installed-tests ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-dist: $(VENV)/installed-tests ## build wheel and sdist, use them in an empty environment (minutes)
	$(BIN)/python -m pytest -m slow tests/test_distribution.py

# Of torch the tested version: its lowest is another gigabyte, and Stable-Baselines3 bounds it too
test-lowest: ## run the tests with the lowest declared versions, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q uv
	grep '^torch==' constraints.txt > .venv-lowest/torch.txt
	.venv-lowest/bin/uv pip install --python .venv-lowest/bin/python --resolution lowest-direct -c .venv-lowest/torch.txt -e '.[tests]'
	.venv-lowest/bin/python -m pytest $(SIDE_BY_SIDE)

mutants: $(VENV)/installed-tests ## change the mathematics one place at a time, see which tests notice (hours; a second call goes on)
	$(BIN)/python -m pip install -c constraints.txt -e '.[mutation]'
	$(BIN)/python benchmarks/mutation.py run mutation/session.sqlite
	$(BIN)/python benchmarks/mutation.py report mutation/session.sqlite --csv results/mutation/survivors.csv

lint: $(VENV)/installed-tests ## check style, format and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

type: $(VENV)/installed-tests ## check types
	$(BIN)/mypy

# Warnings are errors; -E reads everything anew, so that what a kept page points to is checked too
docs: $(VENV)/installed-docs ## build the pages into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -E -q -b html docs docs/_build/html

format: $(VENV)/installed-tests ## sort imports and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-demo ## time one iteration against raw env.step
	$(BIN)/python benchmarks/iteration.py

clean: ## delete .venv and caches, keep results
	rm -rf $(VENV) .venv-lowest build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[fast,lab,zoo]'
	touch $@

$(VENV)/installed-tests: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[tests]'
	touch $@ $(VENV)/installed-demo

$(VENV)/installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[docs]'
	touch $@
