# Two targets a newcomer needs: `make demo` runs the main job, `make test` runs the tests. Both set themselves up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench format clean

demo: $(READY)
	$(BIN)/python -m pipelines.demo --config configs/demo.yaml --output demo

test: $(READY)
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder --cov --cov-report=term --durations=25

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m pipelines.benchmark --output bench

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch is pinned below 2.14 in pyproject.toml: that range resolves to a CPU build where one is at hand.
# --no-compile: of thousands of modules only those that are imported are compiled, when they are.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; set PYTHON=..."'
	$(PYTHON) -m venv $(VENV) || { echo "python venv is missing: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo bench build dist *.egg-info
