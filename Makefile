# All that a person or CI runs. `make` alone lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/dev.txt
export PYTHONUNBUFFERED := 1

# Images are built with the first of these that works. IMAGE_FLAGS are more flags for the build.
CONTAINER ?= $(shell for tool in docker podman buildah; do $$tool info >/dev/null 2>&1 && echo $$tool && break; done)
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' job/__init__.py)
CPU_IMAGE ?= thaw:$(VERSION)-cpu
GPU_IMAGE ?= thaw:$(VERSION)
IMAGE_FLAGS ?=

# The demo is a run like any other, on drawn pictures, with a network that is small enough for a CPU.
DEMO := THAW_DATASET=drawn_cats_vs_dogs THAW_DATA_DIR=.demo/data THAW_STORAGE_URI=.demo/runs \
	THAW_TRAIN_SPLIT='train[:70%]' THAW_VALIDATION_SPLIT='train[70%:85%]' THAW_TEST_SPLIT='train[85%:]' \
	THAW_BACKBONE=Tiny THAW_WEIGHTS=none THAW_IMAGE_SIZE=64 \
	THAW_HEAD_EPOCHS=2 THAW_FINE_TUNE_EPOCHS=10 THAW_FINE_TUNE_LEARNING_RATE=2e-3

.DEFAULT_GOAL := help
.PHONY: help setup setup-services demo run test test-all soak lint types docs bench bench-gpu image image-gpu image-test render render-shared deploy undeploy e2e dashboard lock release-notes clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.installed ## install everything into .venv, from the hashed lock

$(VENV)/.installed: $(LOCK)
	@requirements/setup $(PYTHON) $(VENV) $(LOCK)

SERVICES := prometheus prometheus-pushgateway chromium faketime tini
# Servers of object stores, which are no Debian packages. MinIO's later releases are source only: Go builds it, in minutes.
MINIO := github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c
AZURITE := azurite@3.35.0

# Debian would start the servers, now and with the machine, and Prometheus would use the port of a run's metrics. A policy
# prevents that while they are installed; afterwards they are disabled. The tests start their own.
setup-services: ## install missing programs that some tests need: Debian packages (as root), MinIO and Azurite
	@missing=$$(for name in $(SERVICES); do command -v $$name >/dev/null || echo $$name; done); \
	policy=/usr/sbin/policy-rc.d; \
	if [ -n "$$missing" ]; then \
		set -e; \
		[ -e $$policy ] || { trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' >$$policy; chmod +x $$policy; }; \
		apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $$missing >/dev/null; \
		for name in $$missing; do systemctl disable --quiet $$name 2>/dev/null || true; done; \
	fi
	@if command -v minio >/dev/null || [ -x .services/bin/minio ]; then :; \
	elif command -v go >/dev/null; then GOBIN=$(CURDIR)/.services/bin GOFLAGS=-mod=mod go install $(MINIO) || echo "MinIO could not be built: its tests will be skipped"; \
	else echo "MinIO is not installed: building it needs go"; fi
	@if command -v azurite-blob >/dev/null || [ -x .services/node_modules/.bin/azurite-blob ]; then :; \
	elif command -v npm >/dev/null; then npm install --silent --no-save --prefix .services $(AZURITE) || echo "Azurite could not be installed: its tests will be skipped"; \
	else echo "Azurite is not installed: it needs npm"; fi

demo: setup ## run the complete pipeline on drawn pictures: CPU, a local folder as the store, no network
	@$(DEMO) bin/thaw
	@echo "The results are in .demo/runs: run.json, model/ and report/ of each run. Run it again: it ends at once."

run: setup ## make one attempt at the run that THAW_* describes
	@bin/thaw

test: setup ## run the fast tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not real_data and not matrix and not image and not e2e"

test-all: setup ## run all tests of the program; those on real data need THAW_TEST_DATA
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not matrix and not image and not e2e"

soak: setup ## run all fault tests; then kill and pause small runs at random in each store, and check that none is lost
	$(BIN)/python -m pytest -n 2 -m matrix
	$(BIN)/python -m tests.soak

lint: setup ## check style, layers, and that docs/reference is what the code says
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck bin/thaw .ci/run .ci/publish requirements/install requirements/setup
	$(BIN)/python -m docs.generate --check

types: setup ## check static types
	$(BIN)/mypy

docs: setup ## write docs/reference from the code
	$(BIN)/python -m docs.generate

bench: setup ## measure speed and memory, side by side
	$(BIN)/python -m bench

.gpu/.installed: requirements/gpu.txt
	@requirements/setup $(PYTHON) .gpu $<

bench-gpu: .gpu/.installed ## measure on a GPU what is not measured yet: make bench-gpu [BENCH='step --minutes 20']
	.gpu/bin/python -m bench.gpu $(BENCH)

# podman and buildah would call an image without a registry localhost/..., and a cluster looks for it at docker.io/library, as
# docker means it. buildah would put all that this adds to the base image into one layer of 1.6 GB.
define build_image
	@test -n "$(CONTAINER)" || { echo "building an image needs docker, podman or buildah, and none of them works here" >&2; exit 1; }
	$(CONTAINER) build $(if $(filter buildah,$(notdir $(CONTAINER))),--layers) --target $(1) --tag $(if $(findstring /,$(2)),,docker.io/library/)$(2) --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) \
		$(IMAGE_FLAGS) .
endef

image: ## build the image for CPUs, with docker, podman or buildah
	$(call build_image,cpu,$(CPU_IMAGE))

image-gpu: ## build the image for GPUs
	$(call build_image,gpu,$(GPU_IMAGE))

image-test: setup image ## build the CPU image, and test it read-only, as any user, without a network
	CONTAINER=$(CONTAINER) IMAGE=$(CPU_IMAGE) $(BIN)/python -m pytest -m image tests/test_image.py

OVERLAY ?= local
RENDER = $(BIN)/python -m k8s.render $(OVERLAY)
RENDER_RUN = $(RENDER) $(if $(RUN_ID),--run-id $(RUN_ID))

render: setup ## print the Job and the settings of one run: make render OVERLAY=gke [RUN_ID=...]
	@$(RENDER_RUN)

render-shared: setup ## print what all runs of a namespace share: account, policies, claim
	@$(RENDER) --shared

deploy: setup ## apply what runs share, then the run; the same run again changes nothing
	@manifests=$$($(RENDER_RUN) --deploy) && printf '%s\n' "$$manifests" | kubectl apply -f -

undeploy: setup ## delete the Job and the settings of one run; results and what runs share stay
	@run=$$($(RENDER_RUN)) && printed=$$(printf '%s\n' "$$run" | kubectl delete --ignore-not-found -f -) && \
		printf '%s\n' "$${printed:-nothing to delete: this run is not in the namespace}"

e2e: setup ## test the manifests in the cluster that KUBECONFIG names, which must have the CPU image
	IMAGE=$(CPU_IMAGE) $(BIN)/python -m pytest -m e2e tests/e2e

dashboard: setup ## write Grafana's dashboard from its description
	$(BIN)/python -m k8s.components.monitoring.shared.dashboard > k8s/components/monitoring/shared/thaw.json

lock: ## write the lock files again (needs uv)
	uv pip compile pyproject.toml --extra cpu --universal --generate-hashes --no-header --no-annotate -q -o requirements/cpu.txt
	uv pip compile pyproject.toml --extra gpu --universal --generate-hashes --no-header --no-annotate -q -o requirements/gpu.txt
	uv pip compile pyproject.toml --extra cpu --group test --group lint --universal --generate-hashes --no-header --no-annotate -q -c requirements/cpu.txt -o requirements/dev.txt

release-notes: ## print the section of the changelog for a release: make release-notes TAG=v...
	@test "$(TAG)" = "v$(VERSION)" || { echo "TAG=$(TAG) is not v$(VERSION), the version in job/__init__.py" >&2; exit 1; }
	@notes=$$(sed -n '/^## $(VERSION) ([0-9-]*)$$/,/^## /{/^## /!p}' CHANGELOG.md) && test -n "$$notes" || \
		{ echo "CHANGELOG.md has no section '## $(VERSION) (YYYY-MM-DD)': give it the day of the release" >&2; exit 1; }; \
		printf '%s\n' "$$notes"

clean: ## remove what the targets above wrote
	rm -rf $(VENV) .gpu .demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
