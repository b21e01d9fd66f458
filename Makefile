# tubelet: `make demo` shows what it does, `make test` checks it, `make lint` checks the code.
# `make test-oldest` checks it with the oldest versions that pyproject.toml allows.
# Everything lives in .venv (and .venv-oldest); PYTHON may name another interpreter (3.11 or newer).

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
OLDEST := .venv-oldest/.installed

.PHONY: demo test test-oldest lint format clean

demo: $(STAMP)
	$(BIN)/tubelet demo --out demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

test-oldest: $(OLDEST)
	.venv-oldest/bin/python -m pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	$(call install,.venv,constraints.txt)

$(OLDEST): pyproject.toml constraints-oldest.txt
	$(call install,.venv-oldest,constraints-oldest.txt)

# $(1): the virtual environment; $(2): the versions that go into it
define install
	@$(PYTHON) -c 'import sys; sys.exit("tubelet needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --upgrade pip uv
	$(1)/bin/uv pip install --quiet --compile-bytecode --python $(1)/bin/python -c $(2) -e ".[dev]" \
	  || $(1)/bin/python -m pip install --quiet -c $(2) -e ".[dev]"
	@touch $(1)/.installed
endef

clean:
	rm -rf .venv .venv-oldest build dist demo .mypy_cache .ruff_cache .pytest_cache
