# samserve. `make demo` shows it work; `make serve` runs it; `make help` lists the rest.
# Every target does what it stands on first, and skips what is there and valid.

PYTHON ?= python3
# TYPE names one model type, MODELS several.
TYPE ?= vit_t
MODELS ?= $(TYPE)
PY := .venv/bin/python
export SAMSERVE_MODELS ?= $(MODELS)
# TORCH=cpu saves 5 GB on a machine without an NVIDIA GPU; auto looks for one.
export SAMSERVE_TORCH ?= $(TORCH)

.DEFAULT_GOAL := help
.PHONY: help setup weights archive serve demo scale test lint bench bench-gpu lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 — /p' Makefile

setup: ## create .venv with the pinned dependencies; TORCH=cpu saves 5 GB, TORCH=auto looks for a GPU
	@$(PYTHON) scripts/create_venv.py runtime

setup-dev:
	@$(PYTHON) scripts/create_venv.py dev

weights: setup ## fetch and verify weights, TYPE=vit_b or MODELS="vit_t vit_b" (default vit_t)
	@for model in $(MODELS); do $(PY) -m scripts.fetch_weights $$model || exit 1; done

archive: weights ## build model_store/<type>.mar, TYPE or MODELS as above
	@for model in $(MODELS); do $(PY) -m scripts.build_archive $$model || exit 1; done

serve: archive ## run the server until Ctrl-C; MODELS as above, FLAGS="--port 9000", FLAGS=--help
	@exec $(PY) -m scripts.serve $(FLAGS)

demo: setup-dev archive ## all of it once: set-up, a server, two requests, pictures in out/demo
	@exec $(PY) -m scripts.demo

scale: ## show the lanes of the running server; LANE=vit_t-automask WORKERS=2 scales one
	@exec $(PY) -m scripts.scale $(LANE) $(WORKERS) $(if $(PORT),--port $(PORT))

test: setup-dev archive ## unit tests, then the real server and gateway
	@exec $(PY) -m pytest $(FLAGS)

lint: setup-dev ## ruff and strict mypy
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

bench: setup-dev archive ## measure against the reference, into docs/benchmarks.md; FLAGS=--help
	@exec $(PY) -m scripts.bench $(FLAGS)

bench-gpu: setup-dev ## measure all types on a CUDA GPU, against the reference; FLAGS=--help
	@exec $(PY) -m scripts.bench_gpu $(FLAGS)

EXTRAS = --extra worker --extra gateway --extra conversion
lock: setup-dev ## resolve the pinned versions anew, for every Python from 3.10
	@$(PY) -m uv pip compile --quiet --universal --python-version 3.10 --no-header --upgrade \
	    $(EXTRAS) pyproject.toml -o requirements.lock
	@$(PY) -m uv pip compile --quiet --universal --python-version 3.10 --no-header --upgrade \
	    $(EXTRAS) pyproject.toml --extra demo --extra dev -c requirements.lock -o requirements-dev.lock

clean: ## remove what was built: archives, run folders, demo pictures (keeps .venv and weights)
	@rm -rf model_store/*.mar run out
