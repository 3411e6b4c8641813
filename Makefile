# GNU make 3.81 and later (macOS ships 3.81).

PYTHON ?= python3
VENV ?= .venv
VENV_SAM ?= .venv-sam
VENV_CHECKOV ?= .venv-checkov
VENV_AUDIT ?= .venv-audit
VENV_BENCH ?= .venv-bench
NODE_MODULES := local/node_modules

# A stamp is written last, so an install that was interrupted is done again from the start.
DEV := $(VENV)/.stamp
SAM := $(VENV_SAM)/.stamp
CHECKOV := $(VENV_CHECKOV)/.stamp
AUDIT := $(VENV_AUDIT)/.stamp
BENCH := $(patsubst %,$(VENV_BENCH)/%/.stamp,llamaindex langchain langgraph)
NODE := $(NODE_MODULES)/.stamp

SHELL := /bin/bash
export SAM_CLI_TELEMETRY := 0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install run sam-local test check checkov audit bench coldstart cost prove lock build clean \
	build-ChatFunction build-SessionsFunction build-SweepFunction

help:
	@echo "make run      the whole service on this machine: http://127.0.0.1:3000 (PORT=... moves it, Ctrl-C stops it)"
	@echo "make sam-local  the same in Docker, by sam local start-api (ARGS='--skip-pull-image' goes to it)"
	@echo "make test     the tests (ARGS='-k name -x' goes to pytest)"
	@echo "make check    lint, formatting, types, and the template"
	@echo "make checkov  what is unsafe in the template, but for the exceptions in .checkov.yaml (some 300 MB to install)"
	@echo "make audit    which locked packages have known vulnerabilities (asks PyPI)"
	@echo "make bench    what a turn costs here and in other stores, and what this adds to an agent's run (some minutes)"
	@echo "make coldstart  from nothing to the first response, as built and as pip installs it (some minutes)"
	@echo "make cost     what a turn costs in dollars (TURNS=100000 a month, TOKENS=3000 of window; ARGS=--help says what else)"
	@echo "make prove    the long proofs, for an hour or so (ARGS='crashes --quick' picks some, and a minute or two for each)"
	@echo "make build    what is deployed, in .aws-sam/build (for Graviton see samconfig.toml); then: sam deploy --guided"
	@echo "make install  what make test and make check need, ahead of them"
	@echo "make lock     the requirements files from pyproject.toml (UPGRADE=1 takes the newest versions)"
	@echo "make clean    remove what make installed and built; conversations under .local/ stay"
	@echo
	@echo "PYTHON=python3.13 picks the interpreter, VENV=... where the packages go."

install: $(DEV) $(SAM) $(NODE)

run: $(DEV) $(NODE)
	@exec $(VENV)/bin/python -m local

sam-local: $(DEV) $(SAM) $(NODE)
	@exec $(VENV)/bin/python -m local.sam --sam $(VENV_SAM)/bin/sam $(ARGS)

test: $(DEV) $(NODE)
	@exec $(VENV)/bin/python -m pytest -n auto --dist loadgroup $(ARGS)

check: $(DEV) $(SAM)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy
	$(VENV_SAM)/bin/sam validate --lint --region us-east-1
	$(VENV_SAM)/bin/cfn-lint .github/access.yaml docs/edge.yaml

checkov: $(CHECKOV)
	$(VENV_CHECKOV)/bin/checkov

# Of the lock files, which name every package and its hash, so that nothing is resolved or installed.
audit: $(AUDIT)
	$(VENV_AUDIT)/bin/pip-audit --disable-pip --require-hashes --strict --progress-spinner off \
		$(foreach lock,$(wildcard requirements*.txt),-r $(lock))

bench: $(DEV) $(BENCH) $(NODE)
	@$(VENV)/bin/python -m bench --peers $(VENV_BENCH) $(ARGS)
	@$(VENV)/bin/python -m bench.overhead

cost: $(DEV)
	@exec $(VENV)/bin/python -m bench.cost $(if $(TURNS),--turns '$(TURNS)') $(if $(TOKENS),--tokens '$(TOKENS)') $(ARGS)

coldstart: $(DEV) $(NODE)
	@exec $(VENV)/bin/python -m bench.coldstart $(ARGS)

prove: $(DEV) $(SAM) $(NODE)
	@exec $(VENV)/bin/python -m proof $(ARGS)

clean:
	rm -rf .venv .venv-* $(NODE_MODULES) .aws-sam .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find bench handlers memory local proof tests -name __pycache__ -prune -exec rm -rf {} +


# ---- Installing ------------------------------------------------------------------------------------------------------

# $(call need,program,what to do without it)
need = command -v $(1) >/dev/null || { echo "$(1) is not installed: $(2)" >&2; exit 1; }

define need_python
$(call need,$(PYTHON),install Python 3.11 or newer$(comma) or name one with PYTHON=/path/to/python3); \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "rehydrate needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1): name another with PYTHON=..." >&2; exit 1; }; \
$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; \
	exit 1; }
endef
comma := ,

# $(call install,directory,requirements): a virtual environment made anew, with exactly the locked packages. The lock is
# complete, hence --no-deps (which also spares older pips their trouble with extras under --require-hashes). pip's output
# is a flood: it goes to a log, and a line for every twenty packages is shown.
define install
@$(need_python)
@echo "Creating $(1) with $$($(PYTHON) -V)"
@$(PYTHON) -m venv $(if $(wildcard $(1)/pyvenv.cfg),--clear) $(1)
@echo "Installing the packages of $(2) (about a minute the first time)"
@set -o pipefail; \
PYTHONUNBUFFERED=1 $(1)/bin/python -m pip install --disable-pip-version-check --progress-bar off --no-deps \
	--require-hashes -r $(2) 2>&1 | tee $(1)/install.log | { \
	n=0; \
	while IFS= read -r line; do \
		case "$$line" in \
			Collecting*|Processing*) n=$$((n + 1)); [ $$((n % 20)) -ne 0 ] || echo "  $$n packages ..." ;; \
			Installing*) echo "  $$n packages, installing (half a minute) ..." ;; \
			*ERROR*|*Retrying*) echo "  $$line" ;; \
		esac; \
	done; } || { tail -n 20 $(1)/install.log >&2; echo "The install failed: see $(1)/install.log" >&2; exit 1; }
@touch $@
endef

$(DEV): requirements-dev.txt
	$(call install,$(VENV),requirements-dev.txt)

$(SAM): requirements-sam.txt
	$(call install,$(VENV_SAM),requirements-sam.txt)

$(CHECKOV): requirements-checkov.txt
	$(call install,$(VENV_CHECKOV),requirements-checkov.txt)

$(AUDIT): requirements-audit.txt
	$(call install,$(VENV_AUDIT),requirements-audit.txt)

$(BENCH): $(VENV_BENCH)/%/.stamp: bench/requirements-%.txt
	@mkdir -p $(VENV_BENCH)
	$(call install,$(VENV_BENCH)/$*,$<)

$(NODE): local/package.json local/package-lock.json
	@$(call need,npm,install Node.js 20 or newer$(comma) which brings it (nodejs.org$(comma) your package manager$(comma) or: apt install npm))
	@echo "Installing the DynamoDB engines of local/package-lock.json (some 100 MB the first time)"
	@npm ci --prefix local --no-audit --no-fund
	@touch $@


# ---- Locking ---------------------------------------------------------------------------------------------------------

# Every file says which versions, with hashes, for all platforms and every Python from 3.11 on; no file says from where.
COMPILE = $(VENV)/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --no-python-downloads \
	--generate-hashes --no-strip-extras --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)
COMPILE_GROUP = $(subst pip compile pyproject.toml,pip compile,$(COMPILE)) --group

lock: $(DEV)
	$(COMPILE) --output-file requirements.txt
	$(COMPILE) --group dev --constraints requirements.txt --output-file requirements-dev.txt
	$(COMPILE_GROUP) sessions --constraints requirements.txt --output-file requirements-sessions.txt
	$(COMPILE_GROUP) sam --output-file requirements-sam.txt
	$(COMPILE_GROUP) checkov --output-file requirements-checkov.txt
	$(COMPILE_GROUP) audit --output-file requirements-audit.txt
	$(COMPILE_GROUP) bench-llamaindex --output-file bench/requirements-llamaindex.txt
	$(COMPILE_GROUP) bench-langchain --output-file bench/requirements-langchain.txt
	$(COMPILE_GROUP) bench-langgraph --output-file bench/requirements-langgraph.txt


# ---- Building for Lambda ---------------------------------------------------------------------------------------------

build: $(SAM) $(DEV)
	$(VENV_SAM)/bin/sam build $(if $(ARCH),--parameter-overrides Architecture=$(ARCH))

# `sam build` calls these with the directory to fill (template.yaml: BuildMethod makefile), by way of the small Makefile
# in platforms/ that says ARCH: sam does not hand the function's architecture on. uv, not pip, which evaluates the markers
# for this machine's Python. manylinux_2_28 runs on Amazon Linux 2023, and is the oldest that all packages have wheels for.
build-ChatFunction: LOCK := requirements.txt
build-SessionsFunction build-SweepFunction: LOCK := requirements-sessions.txt
build-ChatFunction build-SessionsFunction build-SweepFunction: $(DEV)
	@test -n "$(ARTIFACTS_DIR)" -a -n "$(ARCH)" || { echo "run 'make build' or 'sam build': they say where to build" >&2; exit 1; }
	$(VENV)/bin/uv pip install --quiet --no-python-downloads --python $(VENV)/bin/python --target "$(ARTIFACTS_DIR)" \
		--python-version 3.13 --python-platform $(subst arm64,aarch64,$(ARCH))-manylinux_2_28 --no-build --no-deps --require-hashes \
		--link-mode copy -r $(LOCK)
	cp -R handlers memory "$(ARTIFACTS_DIR)"
	find "$(ARTIFACTS_DIR)/handlers" "$(ARTIFACTS_DIR)/memory" -name __pycache__ -prune -exec rm -rf {} +
	$(VENV)/bin/python -m platforms.artifact "$(ARTIFACTS_DIR)" $(if $(PYTHON_LAMBDA),--python "$(PYTHON_LAMBDA)")
