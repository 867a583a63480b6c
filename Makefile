# The verbs of this project; each runs inside .venv, which `make install` creates.
.PHONY: install test lint fix types docs demo build

PYTHON = .venv/bin/python

install:            ## a virtual environment with everything, pinned
	python3 -m venv .venv
	.venv/bin/pip install -c constraints.txt -e '.[dev]'

test:               ## all tests
	$(PYTHON) -m pytest

lint:               ## what .ci/run checks before the tests
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

fix:                ## mend what can be mended
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

types:              ## types alone
	$(PYTHON) -m mypy

docs:               ## the documentation site, build/docs/site, warnings as errors
	$(PYTHON) -m tools.site

demo:               ## the main job on the embedded default
	.venv/bin/mtmeta run recipes/reptile_three_task.yaml

build:              ## wheel and sdist
	.venv/bin/pip wheel --no-deps -w dist .
