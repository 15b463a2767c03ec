# Everything happens in .venv, which `make setup` makes from pinned versions.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo test check docs clean

help:
	@echo "make setup   create .venv with pinned versions"
	@echo "make demo    train the built-in world with PPO and show before and after"
	@echo "make test    all tests"
	@echo "make check   format, lint, types, layers, fast tests"
	@echo "make docs    the pages and the reference as a site, in site/"

setup: .venv/.stamp

# Not compiled: most of what is installed is never imported, and the rest is compiled when it is.
.venv/.stamp: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; make PYTHON=/path/to/python3.11 setup"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "installing pinned versions into .venv (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no \
		--dynamo_backend no --num_cpu_threads_per_process 2 \
		scripts/train_ppo.py --run.output-dir $(DEMO)
	@$(BIN)/python scripts/report.py $(DEMO)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_layers.py tests/test_house_style.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock \
		--no-build-isolation -e ".[docs]"
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
