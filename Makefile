# Two commands for everyone: `make demo` and `make test`. Each sets up what it needs.
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Two busy threads spin against each other on small machines; waiting passively does not.
export OMP_WAIT_POLICY := passive
# Kedro's usage statistics stay off, inside the project and outside.
export DO_NOT_TRACK := 1

# Few enough steps for ten minutes on two cores; the arms of the record take twice as many.
SMALLEST_GRID := ablate.grid.only=mix captions_only,ablate.grid.max_seeds=1,ablate.grid.num_workers=2,pretrain.schedule.num_steps=300

.PHONY: help setup demo lab test fast audit lint format viz release clean

help:  ## Shows this list.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.installed  ## Creates the environment in .venv.

$(VENV)/.installed: requirements.txt pyproject.toml plugins/kedro-rerun/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable plugins/kedro-rerun --editable .
	touch $@

# Beside the environment, not in it: exported models are tested on both generations of transformers.
$(VENV)/.installed-transformers5: requirements-transformers5.txt $(VENV)/.installed
	rm -rf $(VENV)/accelerate $(VENV)/transformers5
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target $(VENV)/accelerate --constraint $< accelerate
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target $(VENV)/transformers5 -r $<
	touch $@

demo: setup  ## Runs the whole pipeline on the embedded sample; ends with a report.
	$(BIN)/kedro run

lab: setup  ## Reruns one of MM1's ablations on a drawn world: captions alone beside the mixture.
	$(BIN)/kedro mm1 world --env=lab
	$(BIN)/kedro run --env=lab --pipeline=ablate --params="$(SMALLEST_GRID)"

test: setup lint $(VENV)/.installed-transformers5  ## Lints, checks types and layers, runs every test.
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

fast: setup  ## The tests that take no ten seconds, for between two edits.
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: setup  ## Formats the code and mends what the linter can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

viz: setup  ## Builds the pipeline's picture as a static site in build/.
	$(BIN)/kedro viz build --include-previews

audit: setup  ## Compares both locks with public advisories; needs the network.
	for lock in requirements.txt requirements-transformers5.txt; do \
		$(BIN)/uv tool run --quiet pip-audit --strict --no-deps --disable-pip --requirement $$lock || exit 1; \
	done

release: setup  ## Builds source archives and wheels in dist/ and publishes nothing; TAG=v1.2.3 checks the version.
	test -z "$(TAG)" || test "$(TAG)" = "v$$($(BIN)/python -c 'import mm1_pipeline; print(mm1_pipeline.__version__)')"
	rm -rf dist
	$(BIN)/uv build --quiet --out-dir dist
	$(BIN)/uv build --quiet --out-dir dist plugins/kedro-rerun
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target dist/tried dist/*.whl
	cd dist && PYTHONPATH=tried ../$(BIN)/python -m mm1_pipeline mm1 status --help > /dev/null
	rm -rf dist/tried
	ls -l dist

clean:  ## Removes run outputs; keeps the embedded sample and the environment.
	find data -mindepth 1 -maxdepth 1 ! -name sample -exec rm -rf {} +
