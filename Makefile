# `make demo` and `make test` need nothing but make and Python 3.11 or newer: each makes .venv when there is none.
.DEFAULT_GOAL := help
.NOTPARALLEL:
# Without compiled files every start imports PyTorch from source again.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SETUP := pyproject.toml constraints.txt src/convpeft/_version.py
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# The first of these that is Python 3.11 or newer; `make PYTHON=/path/to/python test` overrides it.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c '$(IS_NEW_ENOUGH)' 2>/dev/null && echo $$name && break; done)
# Test processes at once, and anything else for pytest: make test ARGS="-k lora -x"
JOBS ?= 2
ARGS ?=

.PHONY: help demo test contract architectures experiments promises mutants rivals bench results fuzz lint format types docs wheel ci install clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed-train  ## Train, adapt and compare on offline images; prints where the report is
	@rm -rf runs/demo
	@$(BIN)/convpeft demo --out runs/demo

test: $(VENV)/.installed-dev  ## Run the tests and the doctests
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)

contract: $(VENV)/.installed-dev  ## Run the contract of every method at full length (slow)
	$(BIN)/python -m pytest -q -n $(JOBS) -m contract --hypothesis-profile=full --timeout=0 $(ARGS)

architectures: $(VENV)/.installed-dev  ## Run every method, and patches, on public networks (slow)
	$(BIN)/python -m pytest -q -n $(JOBS) -m architectures --timeout=0 $(ARGS)

experiments: $(VENV)/.installed-dev  ## Run the small budget of every experiment (slow)
	$(BIN)/python -m pytest -q -n $(JOBS) -m experiments --timeout=0 $(ARGS)

promises: $(VENV)/.installed-dev  ## Measure the promises and write docs/promises.md (hours; ARGS="--fast": minutes)
	$(BIN)/python benchmarks/promises/run.py --jobs $(JOBS) $(ARGS)

mutants: $(VENV)/.installed-dev  ## Plant faults into a copy of the source; every one must be caught (slow)
	$(BIN)/python benchmarks/mutants/run.py --jobs $(JOBS) $(ARGS)

rivals: $(VENV)/.installed-dev  ## Put convpeft and other libraries under the same attack (slow)
	$(BIN)/python benchmarks/correctness/run.py $(ARGS)

bench: $(VENV)/.installed-dev  ## Measure what training costs, beside other libraries (half an hour of a quiet machine)
	$(BIN)/python benchmarks/training_cost/run.py $(ARGS)

results: $(VENV)/.installed-dev  ## Write every page and plot of figures again from the committed JSON
	$(BIN)/python experiments/results.py $(ARGS)

fuzz: $(VENV)/.installed-dev  ## Fuzz every reader of files for ten minutes; ARGS="--seconds 3600" for longer
	$(PIP) install --quiet --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python fuzz/run.py $(ARGS)

lint: $(VENV)/.installed-dev  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev  ## Mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev  ## Check the types of src strictly
	$(BIN)/pyright

docs: $(VENV)/.installed-dev  ## Build the documentation into site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo 'Documentation: site/index.html'

wheel: $(VENV)/.installed-dev  ## Build the package and try it in an environment of its own
	@rm -rf dist && mkdir dist
	$(BIN)/python -m build --outdir dist . >dist/build.log 2>&1 || { cat dist/build.log; exit 1; }
	.ci/try-wheel $(BIN)/python dist/*.whl

ci:  ## Everything that continuous integration runs
	.ci/run

install: $(VENV)/.installed-dev  ## Make .venv with everything a developer needs

clean:  ## Remove what the targets made, except .venv and runs
	rm -rf build dist site .hypothesis .ruff_cache
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'convpeft needs Python 3.11 or newer and found none:' \
		'install it, or name it with make PYTHON=/path/to/python3.' >&2; exit 1; }
	@$(PYTHON) -c '$(IS_NEW_ENOUGH)' || { echo 'convpeft needs Python 3.11 or newer:' \
		'$(PYTHON) is older or does not run. Name another with make PYTHON=/path/to/python3.' >&2; exit 1; }
	@echo 'Making $(VENV) with $(PYTHON)'
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); echo '$(PYTHON) cannot make an environment:' \
		'install its venv module (python3-venv on Debian and Ubuntu).' >&2; exit 1; }

# The stamps are newer than the files that say what to install; a change in those installs again.
$(VENV)/.installed-train: $(SETUP) | $(BIN)/python
	@echo 'Installing convpeft[train] into $(VENV); the first time this downloads PyTorch and takes minutes.'
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[train]'
	@touch $@

$(VENV)/.installed-dev: $(SETUP) | $(BIN)/python
	@echo 'Installing convpeft[dev] into $(VENV); the first time this downloads PyTorch and takes minutes.'
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(VENV)/.installed-train $@
