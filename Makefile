# What each target needs is set up by the target itself, once. PYTHON=... names the interpreter,
# PYTEST_ARGS=... goes to pytest.

PYTHON ?=
PYTEST_ARGS ?= -n auto --dist loadfile --no-loadscope-reorder
export PYTHON

venv := .venv/bin
export PATH := $(CURDIR)/$(venv):$(PATH)

demo := demo
tutorial := $(demo)/tutorial

.DEFAULT_GOAL := help
.PHONY: help environment demo test lint docs clean

help:
	@echo "make demo    write a small data set, run both levels on it, name the reports"
	@echo "make test    run the test suite (PYTEST_ARGS='-k masks' selects)"
	@echo "make lint    ruff, mypy and codespell"
	@echo "make docs    build the documentation, warnings as errors"
	@echo "make clean   remove the environment, the demonstration and caches"

environment:
	@scripts/setup-environment.sh test

demo: $(tutorial)/.complete
	$(venv)/lacuna-nipype $(tutorial)/bids $(demo)/derivatives participant \
		--functional-connectome $(tutorial)/connectomes/functional \
		--structural-connectome $(tutorial)/connectomes/structural/demo.tck \
		--parcel-atlases Demo --plugin MultiProc -w $(demo)/work
	$(venv)/lacuna-nipype $(tutorial)/bids $(demo)/derivatives group \
		--plugin MultiProc -w $(demo)/work-group
	@echo "Reports, to be opened in a browser:"
	@echo "  one participant  $(CURDIR)/$(demo)/derivatives/sub-01.html"
	@echo "  the group        $(CURDIR)/$(demo)/derivatives/group.html"

# The file says that the data set was written to its end; one that was cut short is written again.
$(tutorial)/.complete: | environment
	rm -rf $(tutorial)
	$(venv)/lacuna-nipype tutorial $(tutorial)
	@touch $@

test: environment
	$(venv)/python -m pytest $(PYTEST_ARGS)

lint:
	@scripts/setup-environment.sh lint
	$(venv)/ruff check .
	$(venv)/ruff format --check .
	$(venv)/mypy
	$(venv)/codespell *.md *.cff *.toml *.cfg Makefile .ci/run scripts lacuna_nipype tests docs

docs:
	@scripts/setup-environment.sh docs
	$(venv)/python -m sphinx -q -W --keep-going -b html -d build/docs/doctrees docs build/docs/html
	@echo "Documentation: $(CURDIR)/build/docs/html/index.html"

clean:
	rm -rf .venv $(demo) build/docs .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find lacuna_nipype tests -name __pycache__ -type d -prune -exec rm -rf {} +
