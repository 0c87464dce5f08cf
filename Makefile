# Every target does its own set-up: `make install` is a no-op while .venv matches requirements.lock and pyproject.toml.
PYTHON ?= python3
VENV ?= .venv
OUT ?=
SEEDS ?= 0,1,2
PY := $(VENV)/bin/python
STAMP := $(VENV)/.clipette-installed
# `--out` only where OUT is given: each script has a default of its own.
OUT_OPTION = $(if $(OUT),--out $(OUT),)

.PHONY: install demo test check bench-flickr8k bench-pour bench-crash bench-npz clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Clipette needs Python 3.10 or later; set PYTHON=...")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install
	$(VENV)/bin/clipette demo $(OUT_OPTION)

test: install
	$(PY) -m pytest -q $(TESTS)

check: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PY) -m pytest -q tests/test_rooms.py

bench-flickr8k: install
	$(PY) benchmarks/flickr8k.py --seeds $(SEEDS) $(OUT_OPTION)

bench-pour: install
	$(PY) benchmarks/pour_once.py $(OUT_OPTION)

bench-crash: install
	$(PY) benchmarks/crash.py $(OUT_OPTION)

bench-npz: install
	$(PY) benchmarks/npz_teacher.py $(OUT_OPTION)

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
