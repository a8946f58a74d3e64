# Every target works as the first command on a machine with Python >= 3.11 and make.
PYTHON ?= python3
PAPER ?=
SCALE ?= cpu
ENGINE ?= local
EXTRAS ?=
ARGS ?=

BIN := .venv/bin
READY := .venv/.ready
ENCORE := $(BIN)/encore
PAPERS := $(if $(PAPER),$(PAPER),pointer_networks)
TESTS := $(if $(PAPER),tests/papers/$(PAPER),tests)

.DEFAULT_GOAL := help
EXTRA := .venv/.extra-
COMPILE := .tools/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url

.PHONY: help setup reproduce test browser chaos lint types facts regress report speed readme lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

setup: $(READY) $(EXTRAS:%=$(EXTRA)%) ## the pinned environment, into .venv (EXTRAS="ray slurm": these engines too)

.tools/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Encore needs Python >= 3.11; set PYTHON=/path/to/python3.11"; exit 2; }
	@command -v uv >/dev/null && mkdir -p .tools/bin && ln -sf "$$(command -v uv)" $@ || { $(PYTHON) -m venv .tools && .tools/bin/pip install --quiet uv; }

$(READY): requirements.lock pyproject.toml .tools/bin/uv
	@echo "setting up .venv from requirements.lock"
	@[ -x $(BIN)/python ] || .tools/bin/uv venv --quiet --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv
	@.tools/bin/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	@.tools/bin/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@$(BIN)/python -m benchmarks.cli list >/dev/null || true  # the first call looks at everything once
	@touch $@

$(EXTRA)%: $(READY) requirements-extras.lock
	@echo "adding $* to .venv from requirements-extras.lock"
	@.tools/bin/uv pip install --quiet --python $(BIN)/python --constraint requirements-extras.lock --editable ".[$*]"
	@touch $@

reproduce: $(READY) $(patsubst %,$(EXTRA)%,$(filter ray slurm,$(ENGINE))) ## reported, committed and this run for PAPER (default pointer_networks; all) at SCALE (cpu) on ENGINE (local, ray, slurm)
	@$(ENCORE) reproduce $(PAPERS) --scale $(SCALE) --engine $(ENGINE) $(ARGS)

test: lint types ## lint, types, tests (PAPER=clip: that paper's tests)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist worksteal $(TESTS) $(ARGS)

browser: ## a browser for the tests of the site, where the system has none (Debian; else install Chromium yourself)
	@command -v chromium chromium-browser google-chrome >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium >/dev/null; }

chaos: $(READY) ## 50 kills at random moments: results must be those of an undisturbed run (some 15 minutes)
	@$(BIN)/python -m tests.benchmarks.chaos $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check . || { echo "run: $(BIN)/ruff check --fix . && $(BIN)/ruff format ."; exit 1; }

types: $(READY)
	@$(BIN)/mypy --no-error-summary

facts: $(READY) ## every published figure that needs no training, computed on the meta device
	@$(ENCORE) facts $(PAPER)

regress: $(READY) ## smoke loss trajectories against the committed ones, and the facts
	@$(BIN)/python -m benchmarks.run.regress $(if $(PAPER),--paper $(PAPER))

report: $(READY) ## a static site of everything, into reports/
	@$(ENCORE) report

speed: $(READY) ## steps, inference and peak memory against transformers and timm at equal weights
	@$(BIN)/python -m benchmarks.cli speed $(ARGS)

readme: $(READY) ## refresh the generated blocks of the READMEs
	@$(ENCORE) readme

lock: .tools/bin/uv ## pin what pyproject.toml asks for
	@$(COMPILE) --extra dev pyproject.toml -o requirements.lock
	@$(PYTHON) -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; print(*extras["ray"], *extras["slurm"], sep="\n")' | $(COMPILE) --constraint requirements.lock - -o requirements-extras.lock

clean: ## remove the environment, runs and reports
	rm -rf .venv .tools runs reports .mypy_cache .pytest_cache .ruff_cache
