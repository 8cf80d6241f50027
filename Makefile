# Two commands for everyone: `make demo` and `make test`. Each sets up what it needs.
.DEFAULT_GOAL := help
PYTHON ?= python3.11
# Which lock is installed, of `newest` and `pinned` (torch 2.7, Composer); the one that is not the default has an
# environment of its own.
DEFAULT_STACK := newest
STACK ?= $(DEFAULT_STACK)
VENV := $(if $(filter $(DEFAULT_STACK),$(STACK)),.venv,.venv-$(STACK))
BIN := $(VENV)/bin
# As uv knows it: `cpu` (no CUDA libraries, gigabytes less), `auto`, `cu130`, ... Other builds than PyPI's
# come from PyTorch's own index.
TORCH_BACKEND ?=
# Two busy threads spin against each other on small machines; waiting passively does not.
export OMP_WAIT_POLICY := passive
# Kedro's usage statistics stay off, inside the project and outside.
export DO_NOT_TRACK := 1

# A file's tests share costly fixtures, so a file goes to one worker; the longest come first, in tests/e2e.
IN_TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Few enough steps for ten minutes on two cores; the arms of the record take twice as many.
SMALLEST_GRID := ablate.grid.only=mix captions_only,ablate.grid.max_seeds=1,ablate.grid.num_workers=2,pretrain.schedule.num_steps=300

# What a library's version can change.
PART := tests/golden tests/unit/models tests/unit/export tests/unit/streams tests/unit/training \
	tests/e2e/test_training_resume.py tests/e2e/test_training_engines.py

.PHONY: help setup demo chat lab test pytest part other fast audit lint types format viz release wheel clean

help:  ## Shows this list.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.installed-$(STACK)  ## Creates the environment in .venv (STACK=newest or pinned, TORCH_BACKEND=cpu).

# Not resolved anew: the lock is whole.
$(VENV)/.installed-$(STACK): requirements-$(STACK).txt pyproject.toml plugins/kedro-rerun/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.installed*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	grep -vE '$(if $(filter cpu,$(TORCH_BACKEND)),^(nvidia-|cuda-|triton),^$$)' $< | \
		$(BIN)/uv pip sync --quiet --python $(BIN)/python \
		$(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND)) -
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable plugins/kedro-rerun --editable .
	touch $@

# Beside the environment, not in it: exported models are tested on both generations of transformers. The
# list is its own constraint, as uv takes what lifts a limit in pyproject.toml for all that is wanted.
$(VENV)/.installed-beside: requirements-$(STACK)-beside.txt $(VENV)/.installed-$(STACK)
	rm -rf $(VENV)/accelerate $(VENV)/other-transformers
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target $(VENV)/accelerate --constraint $< accelerate psutil
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target $(VENV)/other-transformers --constraint $< -r $<
	touch $@

demo: setup  ## Runs the whole pipeline on the embedded sample; ends with a report.
	$(BIN)/kedro run

# The newest Gradio that every library of the environment allows; nothing of the lock changes for it.
$(VENV)/.installed-chat-$(STACK): $(VENV)/.installed-$(STACK)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements-$(STACK).txt 'gradio>=6.17.3,<7'
	touch $@

chat: $(VENV)/.installed-chat-$(STACK)  ## Talks with the model of the demo on a page, http://127.0.0.1:7860 (CHAT=--env=smoke, ...).
	$(BIN)/kedro mm1 chat --page $(CHAT)

lab: setup  ## Reruns one of MM1's ablations on a drawn world: captions alone beside the mixture.
	$(BIN)/kedro mm1 world --env=lab
	$(BIN)/kedro run --env=lab --pipeline=ablate --params="$(SMALLEST_GRID)"

# Beside each other: the type checker has one thread, and the tests leave a core now and then.
test: setup $(VENV)/.installed-beside  ## Lints, checks types and layers, runs every test.
	$(MAKE) --jobs=2 lint pytest

pytest:
	OMP_NUM_THREADS=1 $(BIN)/pytest $(IN_TWO)

part: setup $(VENV)/.installed-beside  ## The tests that depend on torch, transformers and Pillow.
	OMP_NUM_THREADS=1 $(BIN)/pytest $(IN_TWO) $(PART)

other:  ## The same tests on the stack that is not the default.
	$(MAKE) part STACK=$(filter-out $(DEFAULT_STACK),newest pinned)

fast: setup  ## The tests that are not slow (tests/slow.txt), for between two edits.
	OMP_NUM_THREADS=1 $(BIN)/pytest $(IN_TWO) -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python src plugins/kedro-rerun/src

types: setup  ## Checks the types of tests, benchmarks and campaigns too; `make test` has no time for them.
	$(BIN)/pyright --pythonpath $(BIN)/python

format: setup  ## Formats the code and mends what the linter can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

viz: setup  ## Builds the pipeline's picture as a static site in build/.
	$(BIN)/kedro mm1 viz

audit: setup  ## Compares all locks with public advisories; needs the network.
	for lock in requirements-*.txt; do \
		$(BIN)/uv tool run --quiet pip-audit --strict --no-deps --disable-pip --requirement $$lock || exit 1; \
	done

release: setup  ## Builds archives and wheels in dist/ and publishes nothing; TAG=v1.2.3 checks the version.
	test -z "$(TAG)" || test "$(TAG)" = "v$$($(BIN)/python -c 'import mm1_pipeline; print(mm1_pipeline.__version__)')"
	rm -rf dist
	$(BIN)/uv build --quiet --out-dir dist
	$(BIN)/uv build --quiet --out-dir dist plugins/kedro-rerun
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target dist/tried dist/*.whl
	cd dist && PYTHONPATH=tried ../$(BIN)/python -m mm1_pipeline mm1 status --help > /dev/null
	rm -rf dist/tried
	git archive --prefix=mm1-project/ --output=dist/mm1-project.tar.gz HEAD conf data/sample
	ls -l dist

wheel:  ## Tries both wheels by pip alone in an empty environment (PYTHON=python3.12), away from the checkout; 6 GB.
	.ci/wheel $(PYTHON)

clean:  ## Removes run outputs; keeps the embedded sample and the environment.
	find data -mindepth 1 -maxdepth 1 ! -name sample -exec rm -rf {} +
