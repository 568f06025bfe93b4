# `make` runs the quick tier and writes its report, `make test` the test suite, each on a machine with nothing but Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: all report env test oldest mutants lint docs digests lock

all: env
	$(BIN)/snakemake --cores all all
	$(BIN)/snakemake --cores all --report results/report.html all

report: all

env: $(VENV)/.installed

# Torch comes without a hash, as its builds differ by machine; everything else is compared.
$(VENV)/.installed: requirements.lock torch.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --no-deps --requirement torch.lock
	$(BIN)/pip install --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/pip install --no-deps --editable .
	touch $@

test: env
	$(BIN)/python -m pytest --numprocesses logical --dist loadgroup

# The oldest versions that pyproject.toml promises. Slurm's plugin asks for newer ones.
oldest:
	uv venv --clear --python 3.11 .venv-oldest
	uv pip install --python .venv-oldest --resolution lowest-direct \
		'pytest>=8' '.[workflow,ase,azula,diffusers,denoisers]'
	.venv-oldest/bin/python -m pytest -m 'not slow' tests/conservativeness tests/auditing \
		tests/adapters tests/score tests/test_import.py

# Which small mistakes do the tests see? `make mutants MUTANTS="--per-file 50 qcsbm/score/losses.py"`
mutants: env
	$(BIN)/python tests/mutation/run.py $(MUTANTS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

# The site in build/docs, which needs no network.
docs: env
	$(BIN)/sphinx-build -W --keep-going docs build/docs

# After a change of source. UNCHANGED names the stages whose results are the same bytes as before.
digests: env
	$(BIN)/python tests/regression/code_digests.py $(UNCHANGED)

# Pins that are there stay; `uv pip compile --upgrade …` raises them.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--no-header --no-annotate --generate-hashes \
		--no-emit-package torch --no-emit-package torchvision --output-file requirements.lock
