# samserve. `make demo` shows it work; `make serve` runs it; `make help` lists the rest.
# Each target first makes what it needs, and skips what is there and up to date.

PYTHON ?= python3
# TYPE names one model type, MODELS several.
TYPE ?= vit_t
MODELS ?= $(TYPE)
PY := .venv/bin/python
SAMSERVE := .venv/bin/samserve
export SAMSERVE_MODELS ?= $(MODELS)
# TORCH=cpu saves 5 GB on a machine without an NVIDIA GPU; auto looks for one.
export SAMSERVE_TORCH ?= $(TORCH)

.DEFAULT_GOAL := help
.PHONY: help setup weights archive serve demo scale test test-quick lint bench bench-gpu attack fuzz overload soak
.PHONY: page page-picture lock sbom licenses audit offline pin-images compose-test clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 — /p' Makefile

setup: ## create .venv with the pinned dependencies; TORCH=cpu saves 5 GB, TORCH=auto looks for a GPU
	@$(PYTHON) scripts/create_venv.py runtime

setup-dev:
	@$(PYTHON) scripts/create_venv.py dev

weights: setup ## fetch and verify weights, TYPE=vit_b or MODELS="vit_t vit_b" (default vit_t)
	@for model in $(MODELS); do $(SAMSERVE) weights $$model || exit 1; done

archive: weights ## build model_store/<type>.mar, TYPE or MODELS as above
	@for model in $(MODELS); do $(SAMSERVE) archive $$model || exit 1; done

serve: setup ## run the server until Ctrl-C; MODELS as above, FLAGS="--port 9000", FLAGS=--help
	@exec $(SAMSERVE) serve $(FLAGS)

demo: setup-dev archive ## all of it once: set-up, a server, two requests, pictures in out/demo
	@exec $(PY) -m scripts.demo

scale: ## show the lanes of the running server; LANE=vit_t-automask WORKERS=2 scales one
	@exec $(SAMSERVE) scale $(LANE) $(WORKERS) $(if $(PORT),--port $(PORT))

test: setup-dev archive ## all tests, two processes at once, with real servers; FLAGS="-k name"
	@exec $(PY) -m pytest -n 2 --dist loadscope $(FLAGS)

test-quick: setup-dev ## the tests that need no server, no weights and no archive, in a minute
	@exec $(PY) -m pytest -n 2 -m "not (server or hosts or weights or slow)" tests/unit $(FLAGS)

lint: setup-dev ## ruff, strict mypy, and the layers of the packages
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy
	@.venv/bin/lint-imports --no-logo

bench: setup-dev archive ## measure against the reference, into docs/benchmarks.md; FLAGS=--help
	@exec $(PY) -m bench $(FLAGS)

attack fuzz overload: setup-dev archive ## hostile, random, too many requests, into docs/reliability.md; FLAGS=--help
	@exec $(PY) -m tests.reliability $@ $(FLAGS)

soak: setup-dev archive ## half an hour of mixed traffic, into docs/reliability.md
	@exec $(PY) -m tests.reliability soak --seconds 1800 $(FLAGS)

bench-gpu: setup-dev ## measure all types on a CUDA GPU, against the reference; FLAGS=--help
	@exec $(PY) -m bench.gpu $(FLAGS)

page: ## check and build the gateway's page from page/; needs Node.js 20 or newer
	@cd page && npm ci --no-audit --no-fund --silent && npm run --silent check && npm run --silent build

page-picture: setup-dev archive ## take docs/page.jpg, the README's picture of the page; needs Chromium
	@$(PY) -m tests.support.page_picture

EXTRAS = --extra worker --extra gateway --extra conversion
COMPILE = $(PY) -m uv pip compile --quiet --universal --python-version 3.10 --no-header --upgrade \
    --generate-hashes
lock: setup-dev ## resolve the pinned versions anew, for every Python from 3.10, with all files' hashes
	@$(COMPILE) $(EXTRAS) pyproject.toml -o requirements.lock
	@$(COMPILE) $(EXTRAS) pyproject.toml --extra demo --extra dev -c requirements.lock \
	    -o requirements-dev.lock
	@sed -n 's/^java = \["\(.*\)"\].*/\1/p' pyproject.toml | $(COMPILE) - -o requirements-java.lock
	@$(COMPILE) --no-deps --group sam2 -o requirements-sam2.lock

sbom: setup-dev ## the bill of materials of requirements.lock, CycloneDX 1.6, in out/samserve.cdx.json
	@mkdir -p out
	@.venv/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml \
	    --mc-type application --sv 1.6 --of JSON --output-reproducible -o out/samserve.cdx.json
	@echo "out/samserve.cdx.json"

licenses: setup-dev ## list the licenses of all packages in docs/licenses.md
	@$(PY) -m scripts.list_licenses

compose-test: setup-dev archive ## build the images of deploy/ with all packages and run compose.yaml (needs podman, root, 25 GB)
	@exec $(PY) -m pytest tests/deploy/test_compose_run.py --whole-images $(FLAGS)

pin-images: ## write the digests of the foreign images into deploy/ (needs docker and the internet)
	@$(PYTHON) scripts/pin_images.py

offline: archive ## everything for machines without the internet, in out/offline; FLAGS="--engine docker" adds the images
	@exec $(PY) -m scripts.prepare_offline $(FLAGS)

audit: setup-dev ## look up known faults of the pinned packages (needs the internet)
	@.venv/bin/pip-audit --strict --disable-pip --require-hashes -r requirements.lock

clean: ## remove what was built: archives, run folders, demo pictures (keeps .venv and weights)
	@rm -rf model_store/*.mar run out
