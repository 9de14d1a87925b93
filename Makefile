# `make run` and `make test` are all the set-up that a fresh machine needs (Python >= 3.10 and make).
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help run test lint rulegraph clean install

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: install  ## run the pipeline of params.yaml to the report: reports/index.html
	@if [ -x $(BIN)/snakemake ]; then $(BIN)/snakemake all --cores all; \
	else echo "Snakemake 9.27 does not exist for Python 3.10: the same pipeline under DVC"; $(BIN)/dvc repro; fi

test: install  ## run all tests but the few that take minutes each (`python -m pytest -m long` runs those)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: install  ## check format, style, types and the workflow; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

rulegraph: install  ## draw the graph of the rules in README.md anew
	$(BIN)/python workflow/rulegraph.py

clean:  ## remove what the pipeline wrote; keeps .venv, DVC's cache and what was downloaded to data/coco2017
	rm -rf data/emoji data/splits data/text_embeddings.safetensors data/*/manifest.json data/*/root.json models runs metrics metrics.json \
		reports ablations/*/ checkpoints logs .snakemake dvc.lock

install: .venv/.installed  ## create .venv and install everything into it, once

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 10) and \
		f"fvlm: expected Python >= 3.10, got {v}; name a newer one: make run PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,demo,onnx]"
	@$(BIN)/python -c "import torchvision" 2>/dev/null || { echo "fvlm: torchvision does not load with this torch: a CPU-only \
	build of torch does not go with torchvision's ordinary wheel; install both from the same index" >&2; exit 1; }
	@touch $@
