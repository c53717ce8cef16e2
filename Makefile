# Every target sets up what it needs. `make PYTHON=python3.12 ...` chooses the interpreter, `make JOBS=8 ...` how many
# processes work at a time, and `make TORCH=cpu ...` leaves out all that CUDA needs.

PYTHON ?= python3
JOBS ?= 2
TORCH ?=

VENV := .venv
BIN := $(VENV)/bin
# The stamps carry the version: another PYTHON means another environment, and so does another TORCH.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')$(TORCH:%=-%)
PACKAGES := $(VENV)/.packages-$(VERSION)
READY := $(VENV)/.ready-$(VERSION)
EXTRAS := torchattacks robustbench ray corruptions

comma := ,
ifneq ($(TORCH),$(filter cpu,$(TORCH)))
$(error TORCH=$(TORCH) is not known; give TORCH=cpu for torch without CUDA, or leave it out for the locked torch)
endif

# A wheel of half a gigabyte may pause longer than uv's half minute.
export UV_HTTP_TIMEOUT ?= 300
# Jobs and test workers are processes of one thread each. Tests have a worker more than cores: some wait for processes.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow test-extras test-lowest lowest-python sanitise check bench docs notebook lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## install everything into .venv (the other targets do it too)

DEMO := dense random magnitude imp hydra awt iwi
demo: $(READY) ## train, prune, attack and rank seven pruners on the digits
	$(BIN)/prunebench run digits-linf $(DEMO:%=--pruner %) --sparsity 0.95 --seed 0 --best --jobs $(JOBS) --out runs/demo

test: $(READY) ## run the tests that need neither minutes nor a GPU
	$(BIN)/pytest -n $$(( $(JOBS) + 1 )) --dist worksteal

test-slow: $(READY) ## run the slower tests and variants, minutes in all
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m "slow and not gpu"

test-extras: $(READY) $(EXTRAS:%=.venv-%/.ready-$(VERSION)) ## test torchattacks, robustbench, Ray and corruptions, each in its own environment
	$(BIN)/pytest tests/extras/test_conflict.py tests/extras/test_wheel.py
	.venv-torchattacks/bin/python -m pytest tests/extras/test_torchattacks.py
	.venv-robustbench/bin/python -m pytest tests/extras/test_robustbench.py
	.venv-ray/bin/python -m pytest tests/extras/test_ray.py
	.venv-corruptions/bin/python -m pytest tests/extras/test_corruptions.py

test-lowest: lowest-python .venv-lowest/.ready-$(VERSION) ## test the lowest versions that pyproject.toml allows, in an environment of their own
	.venv-lowest/bin/python -m pytest tests/extras/test_lowest.py

# numpy 1.26.0 and others of them have no wheels for Python 3.13.
lowest-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 13) and "The lowest versions need Python 3.11 or 3.12: \
	make PYTHON=python3.12 test-lowest")'

sanitise: $(READY) ## run the kernels under sanitisers and, where there is an emulator, on another processor
	$(BIN)/pytest -m "" tests/executor/test_sanitised.py

check: $(READY) ## lint, formatting, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/system/test_architecture.py

bench: $(READY) ## time what should be fast
	$(BIN)/pytest tests/benchmarks --benchmark-only

DOCS := .venv-docs/.ready-$(VERSION)
docs: $(DOCS) ## build the documentation's web site in build/docs
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	.venv-docs/bin/python -m pytest tests/extras/test_pages.py tests/extras/test_notebook.py

notebook: $(DOCS) ## execute docs/first-pruner.ipynb; make WRITE=--write notebook keeps the outputs
	.venv-docs/bin/python -m tools.notebook docs/first-pruner.ipynb $(WRITE)

clean: ## remove environments, caches and builds; runs/ and data/ stay
	rm -rf .venv .venv-* build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call install_locked,ENVIRONMENT,FILE): uv is quicker than pip and shares the files of packages between environments;
# pip takes over where the way to a package index is set up for pip alone. Both accept nothing but the hashes in FILE.
define install_locked
$(BIN)/uv pip install --quiet --python $(1)/bin/python --require-hashes --requirement $(2) || { \
	echo "uv could not; trying pip, which takes a minute or two"; \
	$(BIN)/python -m pip --python $(1)/bin/python install --quiet --require-hashes --requirement $(2); }
endef

# $(call install,ENVIRONMENT,FILE): everything in FILE. With TORCH=cpu, torch and torchvision have the locked versions, but
# come from the index of CPU builds that uv knows; they have other hashes than the locked builds, so none is checked.
ifeq ($(TORCH),cpu)
CUDA := torch|torchvision|triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+
define install
awk '/^[a-z]/ { keep = !/^($(CUDA))==/ } keep' $(2) > $(1)/without-cuda.txt
@$(call install_locked,$(1),$(1)/without-cuda.txt)
@pair=$$(awk '/^(torch|torchvision)==/ { print $$1 }' $(2)); \
	$(BIN)/uv pip install --quiet --python $(1)/bin/python --no-deps --torch-backend cpu $$pair 2> $(1)/torch.log || { \
	echo "uv found no" $$pair "without CUDA ($(1)/torch.log says why): check the network, or leave out TORCH=cpu"; \
	exit 1; }
endef
else
install = $(install_locked)
endif

# $(call install_project,ENVIRONMENT): the build backend is among the installed packages, so nothing is fetched.
define install_project
$(BIN)/python -m pip --python $(1)/bin/python install --quiet --no-deps --no-build-isolation --no-index --editable .
endef

$(PACKAGES): requirements/uv.txt requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prunebench needs Python 3.11 or newer, and \
	$(PYTHON) is older: name another one, for example make PYTHON=python3.12")'
	@echo "Setting up $(VENV): $(if $(TORCH),torch without CUDA,about a minute and 5 GB$(comma) most of it torch)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/uv.txt
	@$(call install,$(VENV),requirements/dev.txt)
	@touch $@

$(READY): $(PACKAGES) pyproject.toml
	@$(call install_project,$(VENV))
	@touch $@

.venv-%/.ready-$(VERSION): requirements/%.txt pyproject.toml | $(READY)
	@echo "Setting up .venv-$*"
	@rm -rf .venv-$*
	@$(PYTHON) -m venv --without-pip .venv-$*
	@$(call install,.venv-$*,$<)
	@$(call install_project,.venv-$*)
	@touch $@

# `make lock` keeps the versions that still fit; `make lock UPGRADE=1` takes the newest.
# fewest: one version for every Python where one exists, so that results do not differ by interpreter.
COMPILE = .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	$(if $(UPGRADE),--upgrade)
PROJECT := pyproject.toml requirements/tools.in --constraint requirements/pins.in
LOWEST := pyproject.toml requirements/lowest.in --resolution lowest-direct

lock: ## resolve the versions anew into requirements/*.txt (UPGRADE=1: the newest)
	@rm -rf .venv-lock
	@$(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet --require-hashes --requirement requirements/uv.txt
	$(COMPILE) requirements/uv.in --output-file requirements/uv.txt
	$(COMPILE) $(PROJECT) --extra dev --output-file requirements/dev.txt
	for extra in $(EXTRAS) docs; do $(COMPILE) $(PROJECT) --constraint requirements/dev.txt --extra $$extra \
		--output-file requirements/$$extra.txt || exit 1; done
	$(COMPILE) $(LOWEST) --output-file requirements/lowest.txt
	@! grep -n '://' requirements/*.txt  # no address may be committed
