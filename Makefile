# Two commands: `make run` goes from nothing to a registered model, `make test` runs the quick tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# dvc.yaml's commands are found on the path, and the libraries stay quiet
export PATH := $(abspath $(BIN)):$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: run test test-all lint docs clean

run: $(BIN)/.installed
	$(BIN)/stackseg sample
	$(BIN)/dvc repro
	$(BIN)/dvc metrics show
	@echo "next: $(BIN)/mlflow ui   (then open 'http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning'), or: $(BIN)/stackseg add IMAGES MASKS"

# two processes of one thread each: with two each, they would wait for one another
test: $(BIN)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-all: $(BIN)/.installed
	$(BIN)/python -m pytest -m ""

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# the site, into site/: any warning ends it
docs: $(BIN)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(BIN)/.installed-docs: $(BIN)/.installed
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[docs]"
	touch $@

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q uv
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[dev,grpc,postgresql]"
	touch $@

clean:
	rm -rf $(VENV) outputs checkpoints site
