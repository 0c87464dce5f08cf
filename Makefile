# Every target does its own set-up: `make install` is a no-op while .venv matches requirements.lock and pyproject.toml.
# The first Python that is new enough.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(or $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done),python3)
VENV ?= .venv
OUT ?=
SEEDS ?=
# Test processes: three on the two cores of the smallest machine, for some tests wait for servers; 0 is one, in the foreground.
WORKERS ?= 3
PY := $(VENV)/bin/python
STAMP := $(VENV)/.clipette-installed
# Options only where they are given: each script has defaults of its own.
OUT_OPTION = $(if $(OUT),--out $(OUT),)
SEEDS_OPTION = $(if $(SEEDS),--seeds $(SEEDS),)
METHODS_OPTION = $(if $(METHODS),--methods $(METHODS),) $(if $(TIER),--tier $(TIER),) $(if $(PEERS),--peers $(PEERS),)

.PHONY: install demo test test-bench check clean bench-flickr8k bench-pour bench-crash bench-npz bench-methods bench-pareto \
	bench-export bench-adapt bench-inherit bench-search bench-crash-index bench-serve

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo 'Clipette needs Python 3.10 or later: make PYTHON=/path/to/python3.11'; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check --no-deps -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install
	$(VENV)/bin/clipette demo $(OUT_OPTION)

test: install
	$(PY) -m pytest -q -n $(WORKERS) $(TESTS)

# Every benchmark whole, at its smallest: minutes each.
test-bench: install
	$(PY) -m pytest -q -m bench $(TESTS)

check: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PY) -m pytest -q tests/test_rooms.py

bench-flickr8k: install
	$(PY) benchmarks/flickr8k.py $(SEEDS_OPTION) $(OUT_OPTION)

bench-pour: install
	$(PY) benchmarks/pour_once.py $(OUT_OPTION)

bench-crash: install
	$(PY) benchmarks/crash.py $(OUT_OPTION)

bench-methods: install
	$(PY) benchmarks/methods.py $(SEEDS_OPTION) $(METHODS_OPTION) $(OUT_OPTION)

bench-npz: install
	$(PY) benchmarks/npz_teacher.py $(OUT_OPTION)

bench-export: install
	$(PY) benchmarks/export_student.py $(OUT_OPTION)

bench-pareto: install
	$(PY) benchmarks/pareto.py $(SEEDS_OPTION) $(OUT_OPTION)

bench-inherit: install
	$(PY) benchmarks/inherit.py $(SEEDS_OPTION) $(OUT_OPTION)

bench-adapt: install
	$(PY) benchmarks/adapt.py $(SEEDS_OPTION) $(OUT_OPTION)

bench-search: install
	$(PY) benchmarks/search.py $(OUT_OPTION)

bench-crash-index: install
	$(PY) benchmarks/crash_index.py $(OUT_OPTION)

bench-serve: install
	$(PY) benchmarks/serve.py $(OUT_OPTION)

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
