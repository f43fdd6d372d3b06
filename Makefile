# `make` lists the targets. Needed: make, git, python3 (3.11 or newer) with venv. Everything else lands in .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# PostgreSQL versions the database tests run on: 18 and 16 come in a wheel, 15 joins in where it is installed.
PG15_BIN := $(or $(LLMQUEUE_TEST_PG15_BIN),$(wildcard /usr/lib/postgresql/15/bin))
PGS ?= 18 16 $(if $(PG15_BIN),15)

# These need no database and run once; all others run on the first PostgreSQL, the core on the second, and on a third
# the guards, which read every function body there, and what claims, settles and upgrades. All SQL on all of them:
# make test CORE="tests/guards tests/sql tests/properties" SHORT_CORE='$(CORE)'
SHORT_CORE := tests/guards $(wildcard tests/sql/test_claim*.py tests/sql/test_settle*.py) \
        tests/sql/test_init_default.py tests/sql/test_limiter.py tests/sql/test_roles.py tests/sql/test_upgrade.py
CORE := $(sort $(SHORT_CORE) $(wildcard tests/sql/test_init_*.py)) \
        tests/sql/test_sweep.py tests/sql/test_epoch.py tests/properties/test_limiter.py
# What measures how soon something comes, or starts a process per core, runs alone, the others side by side.
ALONE := tests/concurrency/test_fleet.py $(wildcard tests/system/test_live_limits.py tests/system/test_hot.py \
         tests/system/test_frozen.py tests/system/test_failover.py)
NO_DATABASE := $(wildcard tests/unit)
# On the first PostgreSQL `make check` has run these.
CHECKED := $(filter-out tests/guards/test_plans.py,$(wildcard tests/guards/test_*.py))
QUICK := -m "not slow and not soak"
JOBS ?= 2
SIDE_BY_SIDE := --numprocesses $(JOBS) --dist worksteal
# COVERAGE=yes, as in CI: `make test` counts the lines that the first of these run, and says the total.
COVERAGE ?=
COVER := --cov=llmqueue --cov-report=

# Pythons whose resolve goes into constraints.txt, oldest first: the newer ones keep to what the oldest chose.
PIN_PYTHONS ?= python3.11 python3.13

export LLMQUEUE_TEST_PG15_BIN := $(PG15_BIN)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup demo test coverage check docs format bench bench-limits chaos fuzz prove wheel release audit sbom pin clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  ARGS=... goes to demo, test, coverage, bench, bench-limits, chaos, fuzz and prove"
	@echo "  PGS=\"18 16\" chooses PostgreSQL versions;  PYTHON=python3.13"

setup: $(READY) ## make .venv with everything pinned; done once, again when pyproject.toml or constraints.txt change

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "llmqueue needs Python 3.11 or newer; '$(PYTHON)' is missing or older. Try: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.13" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --editable '.[dev]' --constraint constraints.txt
	@touch $@

demo: setup ## the whole system on this machine: embedded Postgres, simulated backend, workers, real prompts
	@$(BIN)/llmqueue demo $(ARGS)

test: setup ## every test but the long ones and `make check`'s: without a database once, the others on each PostgreSQL in PGS
	$(if $(NO_DATABASE),$(BIN)/pytest $(NO_DATABASE) $(SIDE_BY_SIDE) $(QUICK) $(if $(COVERAGE),$(COVER)) $(ARGS))
	$(if $(COVERAGE),@echo "coverage of src by the tests without a database: $$($(BIN)/coverage report --format=total) %")
	@set -e; for pg in $(PGS); do \
	  echo "== PostgreSQL $$pg"; \
	  case $$pg in \
	  $(firstword $(PGS))) \
	    $(BIN)/pytest --pg $$pg $(addprefix --ignore=,$(NO_DATABASE) $(ALONE) $(CHECKED)) $(SIDE_BY_SIDE) $(QUICK) $(ARGS); \
	    $(BIN)/pytest --pg $$pg $(ALONE) $(QUICK) $(ARGS);; \
	  $(or $(word 2,$(PGS)),none)) \
	    $(BIN)/pytest --pg $$pg $(CORE) $(SIDE_BY_SIDE) $(QUICK) $(ARGS);; \
	  *) \
	    $(BIN)/pytest --pg $$pg $(SHORT_CORE) $(SIDE_BY_SIDE) $(QUICK) $(ARGS);; \
	  esac; \
	done

coverage: setup ## which lines of src the tests without a database and those of the SQL reach, in process
	$(BIN)/pytest --pg $(firstword $(PGS)) $(NO_DATABASE) tests/sql $(SIDE_BY_SIDE) $(QUICK) $(COVER) $(ARGS)
	$(BIN)/coverage report --sort=cover

check: setup ## format, lint, types, and the guards that hold docs, schema and SQL to the code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m tools.commits
	$(BIN)/mypy $(wildcard src tests tools bench)
	$(BIN)/pytest tests/guards --ignore=tests/guards/test_plans.py # those fill large tables: `make test` has them

docs: setup ## rewrite the generated pages of docs/ and the snapshot of the schema
	$(BIN)/python -m tools.docs

format: setup ## rewrite files the way `make check` wants them
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: setup ## measure against peers and the machine's limits; ARGS names the parts
	@$(BIN)/python -m bench $(ARGS)

bench-limits: setup ## is the limiter exact and full, and how do other algorithms do; ARGS=--quick for a look
	@$(BIN)/python -m bench.limits $(ARGS)

chaos: setup ## a fleet and a fault every few seconds, then every promise is held against what is left; ARGS=--quick for a look
	@$(BIN)/python -m bench.chaos $(ARGS)

fuzz: setup ## nonsense for `add`, settings, command line and the backend's replies; ARGS="--minutes 10 --seed 1 --only add"
	@$(BIN)/python -m bench.fuzz $(ARGS)

prove: setup ## the long system tests: kills, lost databases, live quota changes
	$(BIN)/pytest -m slow tests $(ARGS)

wheel: setup ## build sdist and wheel into dist/ and see that the SQL is in both
	@rm -rf dist
	$(BIN)/python -m build --outdir dist
	@want=$$(find sql -name '*.sql' | wc -l); \
	wheel=$$($(BIN)/python -m zipfile -l dist/*.whl | grep -c 'llmqueue/sql/.*\.sql '); \
	sdist=$$(tar -tzf dist/*.tar.gz | grep -c '^[^/]*/sql/.*\.sql$$'); \
	echo "SQL files: $$want here, $$wheel in the wheel, $$sdist in the sdist"; \
	test "$$want" -gt 0 -a "$$want" -eq "$$wheel" -a "$$want" -eq "$$sdist"

RELEASE := .venv-release

$(RELEASE)/.ready: tools/release.txt
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/pip install -qq --requirement tools/release.txt
	@touch $@

release: wheel $(RELEASE)/.ready ## build, check, and install both in clean environments where a task is answered; publishes nothing
	$(RELEASE)/bin/twine check --strict dist/*.tar.gz dist/*.whl
	$(RELEASE)/bin/python tools/smoke.py dist/*.tar.gz dist/*.whl
	@echo "to publish: twine upload dist/*.tar.gz dist/*.whl"

AUDIT   := .venv-audit
RUNTIME := .venv-runtime

$(AUDIT)/.ready: tools/audit.txt
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install -qq --requirement tools/audit.txt
	@touch $@

audit: $(AUDIT)/.ready ## ask the advisory database about every pinned package; exit 2 where it cannot be reached
	@$(AUDIT)/bin/python -m tools.audit $(AUDIT)/bin/pip-audit

sbom: $(AUDIT)/.ready ## list what an installation holds (CycloneDX) in dist/sbom.json
	@rm -rf $(RUNTIME); mkdir -p dist
	$(PYTHON) -m venv --without-pip $(RUNTIME)
	$(AUDIT)/bin/pip --python $(RUNTIME)/bin/python install -qq --constraint constraints.txt .
	$(AUDIT)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-file dist/sbom.json $(RUNTIME)/bin/python
	@rm -rf $(RUNTIME)
	@$(AUDIT)/bin/python -m tools.sbom dist/sbom.json

pin: ## resolve anew and rewrite constraints.txt
	@set -e; new=$$(mktemp -d); trap 'rm -rf "$$new"' EXIT; touch "$$new/pins"; \
	for python in $(PIN_PYTHONS); do \
	  version=$$($$python -c 'import platform; print(platform.python_version())'); \
	  echo "resolving on Python $$version"; on="$$on $$version"; \
	  $$python -m venv "$$new/$$version"; \
	  "$$new/$$version/bin/pip" install -qq --editable '.[dev]' --constraint "$$new/pins"; \
	  "$$new/$$version/bin/pip" freeze --exclude llmqueue >> "$$new/pins"; \
	  LC_ALL=C sort --unique --ignore-case --output "$$new/pins" "$$new/pins"; \
	done; \
	{ echo "# What .venv is made of: exact versions, resolved on Python$$on. Rewritten by: make pin"; \
	  cat "$$new/pins"; } > constraints.txt
	@echo "constraints.txt: $$(grep -c == constraints.txt) packages"

clean: ## remove .venv, builds and caches
	rm -rf $(VENV) .venv-peers $(RELEASE) $(AUDIT) $(RUNTIME) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
