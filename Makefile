# The verbs of this project; each but `help` and `install` runs inside .venv, which `make install` creates.
.DEFAULT_GOAL := help
.PHONY: help install test slow lint fix types schema docs demo build

PYTHON = .venv/bin/python

help:               ## these verbs
	@sed -n 's/^\([a-z]*\):  *## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST) | expand -t 16

install:            ## a virtual environment with everything, pinned
	python3 -m venv .venv
	.venv/bin/pip install -c constraints.txt -e '.[dev]'

test:               ## all tests but the slow ones
	$(PYTHON) -m pytest

slow:               ## the tests that take long: docs/reliability.md names them
	$(PYTHON) -m pytest -m slow

lint:               ## what .ci/run checks after the tests
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

fix:                ## mend what can be mended
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

types:              ## types alone
	$(PYTHON) -m mypy

schema:             ## the JSON Schema of recipes, after a change to their keys
	MTMETA_PLUGINS=none .venv/bin/mtmeta schema --out mtmeta/recipe.schema.json

docs:               ## the documentation site, build/docs/site, warnings as errors
	$(PYTHON) -m tools.site

demo:               ## the main job on the embedded default
	.venv/bin/mtmeta run recipes/reptile_three_task.yaml

build:              ## the wheel, in dist/
	.venv/bin/pip wheel --no-deps -w dist .
