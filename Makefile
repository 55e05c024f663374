# Verbs of the project. `make setup` makes .venv; every other verb makes it first if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# One process of many on a small machine: fewer threads, none of them spinning.
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup quickstart test test-slow chaos chaos-short lint format protos bench images gpu-check clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: setup
	$(BIN)/fairlead quickstart

# A file's tests stay in one of the two processes, since they share what they have set up. One that crashes is
# told and not started again, for which pytest-xdist would wait forever.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

test-slow: setup
	$(BIN)/python -m pytest -m slow -rs --timeout 1800 --hypothesis-profile default

# Real processes under seeded faults, minutes a seed; leaves runs/chaos/summary.json. docs/reliability.md.
SEEDS ?= 3
FAULTS ?= 40
chaos: setup
	$(BIN)/python -m tests.chaos --seeds $(SEEDS) --faults $(FAULTS)

# Two minutes each on a machine of one's own; the limits are for busy ones.
chaos-short: setup
	timeout 480 $(BIN)/python -m tests.chaos --seeds 1 --first-seed 520 --faults 9 --out runs/chaos-short
	$(BIN)/python -m pytest tests/integration/test_determinism.py -m slow -k four_workers --timeout 480

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/yamllint --strict .github
	cd protos && ../$(BIN)/buf lint
	PATH=$(BIN):$$PATH $(BIN)/python protos/generate.py --check

format: setup
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

protos: setup
	PATH=$(BIN):$$PATH $(BIN)/python protos/generate.py

# The short ones, or `make bench NAMES="stages services trl"`; docs/benchmarks.md.
bench: setup
	$(BIN)/python -m benchmarks $(NAMES)

images:
	tests/images/build.sh

gpu-check: setup
	$(BIN)/python -m pytest tests/gpu -rs
	$(BIN)/python -m benchmarks --gpu

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
