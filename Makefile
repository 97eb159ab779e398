# Two commands do everything: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart install test test-all test-versions lint docs bench sbom audit clean

quickstart: .venv/installed  ## install, then run the main job on generated scenes
	$(BIN)/pretune run quickstart

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing about 6 GB (torch with CUDA among it) into .venv: some minutes, silently"
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

lint: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

# Two processes at a time, one thread each, but for the tests that start Ray: each of these takes the whole machine.
PAIRED := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test: .venv/installed-test lint  ## lint, types and the tests that run everywhere
	$(PAIRED) -m 'not slow and not ray'
	$(BIN)/python -m pytest -m 'ray and not slow'

test-all: .venv/installed-test lint  ## also the long forms
	$(PAIRED) -m 'not slow and not ray'
	$(BIN)/python -m pytest -m 'slow or ray'
	$(MAKE) test-versions

test-versions: .venv/installed  ## lowest and newest Ray and Optuna on every Python, in environments of their own
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python tests/versions.py

docs: .venv/installed  ## site/: the documentation as pages that open without a server; links are checked
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/settings.py
	$(BIN)/python docs/cli.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

DATA ?= $(HOME)/datasets
BENCH := $(BIN)/python -m benchmarks

bench: .venv/installed-test  ## quick forms of the measurements, one after the other; DATA is the folder with oxford-iiit-pet
	$(BENCH).whole_study --data $(DATA) --quick --without-b
	$(BENCH).first_trial --repeats 2
	$(BENCH).tune_overhead growth 240
	$(BENCH).throughput --data $(DATA) --threads 1 --images 192 --epochs 2 --repeats 1 --methods simclr
	$(BENCH).finetune_throughput --data $(DATA) --images 300 --repeats 1
	$(BENCH).data --data $(DATA) --skip-views --images 200
	$(BENCH).sharing --data $(DATA)

sbom: .venv/installed  ## sbom.json: the packages of .venv, in CycloneDX
	$(BIN)/python docs/sbom.py

audit: .venv/installed  ## known vulnerabilities of these packages; needs pip-audit's data
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip_audit --skip-editable

clean:
	rm -rf .venv runs site .mypy_cache .ruff_cache .pytest_cache
