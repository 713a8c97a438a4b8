# `make help` lists the verbs. Everything is installed into .venv, pinned by constraints.txt; what is there is not installed twice.

ENV ?= HalfCheetah-v5
STEPS ?= 200000
SEED ?= 0

PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
PEERS := .venv-peers
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST_STAMP := $(OLDEST)/.installed
LOGS := logs

# torch first and exactly: a range would let pip choose a build with gigabytes of CUDA.
TORCH := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)

PYTEST := pytest -n 2 --dist worksteal
# Two processes run tests already. Threads of BLAS and OpenMP, theirs and their children's, would wait for each other.
test test-oldest test-wheel: export OMP_NUM_THREADS := 1

# Modules are compiled when they are first imported: most never are, and compiling all takes longer than the rest. So what is
# compiled has to be kept: tests start many processes, and each would compile torch again.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := pip install --quiet --disable-pip-version-check --no-compile

.DEFAULT_GOAL := help
.PHONY: help install train test install-oldest test-oldest test-wheel check format docs bench clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

install: $(STAMP)  ## create .venv and install everything, pinned

$(STAMP): pyproject.toml constraints.txt constraints-imitation.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m $(INSTALL) $(TORCH)
	$(BIN)/python -m $(INSTALL) --constraint constraints.txt --editable '.[all]'
	$(BIN)/python -m $(INSTALL) --no-deps --requirement constraints-imitation.txt
	touch $@

train: install  ## train TRPO through RL Zoo; ENV=HalfCheetah-v5 STEPS=200000 SEED=0
	$(BIN)/python -m sb3_trpo.zoo train --algo trpo --env $(ENV) --n-timesteps $(STEPS) --seed $(SEED) --log-folder $(LOGS) \
		--num-threads 1 --eval-freq 20000 --eval-episodes 5 --save-freq 50000 --verbose 0 --progress
	$(BIN)/python -m sb3_trpo.zoo report --algo trpo --env $(ENV) --folder $(LOGS) --episodes 20

test: install  ## run the tests
	$(BIN)/python -m $(PYTEST) $(ARGS)

install-oldest: $(OLDEST_STAMP)  ## create .venv-oldest with the oldest Stable-Baselines3 supported

test-oldest: install-oldest  ## run the contract tests on the oldest Stable-Baselines3 supported
	$(OLDEST)/bin/python -m $(PYTEST) tests/contract $(ARGS)

$(OLDEST_STAMP): pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m $(INSTALL) $(TORCH)
	$(OLDEST)/bin/python -m $(INSTALL) --constraint constraints-oldest.txt \
		--editable '.[contrib,checkpoint]' pytest pytest-xdist hypothesis
	touch $@

check: install  ## ruff format, ruff lint, mypy strict; stops at the first fault
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install  ## let ruff mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install  ## build the documentation into build/docs; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html docs build/docs

bench: install  ## measure; raw results go to benchmarks/results
	$(BIN)/python -m benchmarks.speed.run
	$(BIN)/python -m benchmarks.peers.run --prepare
	$(BIN)/python -m benchmarks.peers.run
	$(BIN)/python -m benchmarks.trust_region.run
	$(BIN)/python -m benchmarks.state_kl.run
	$(BIN)/python -m benchmarks.memory.run
	$(BIN)/python -m benchmarks.checkpoint.run
	$(BIN)/python -m benchmarks.learning.run rl_zoo
	$(BIN)/python -m benchmarks.learning.run mujoco
	$(BIN)/python -m benchmarks.variants.run
	$(BIN)/python -m benchmarks.scaling.run
	$(BIN)/python -m benchmarks.agents.run
	$(BIN)/python -m benchmarks.report

test-wheel: install  ## run the tests against the built wheel instead of the checkout
	rm -rf dist build
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(BIN)/python -m $(INSTALL) --no-deps --target build/wheel dist/*.whl
	cd build && PYTHONPATH=wheel ../$(BIN)/python -c 'import sb3_trpo; assert "build/wheel" in sb3_trpo.__file__, sb3_trpo.__file__'
	PYTHONPATH=$(CURDIR)/build/wheel $(BIN)/$(PYTEST) $(ARGS)

clean:  ## remove environments, caches and build results; keeps logs
	rm -rf $(VENV) $(OLDEST) $(PEERS) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
