# What a developer does, by name. `make help` lists it.

.DEFAULT_GOAL := help
.PHONY: help setup run test test-long lint format types contracts hostile fuzz lock audit bench failover steady catchup stream scale crowd stalls filecopy compared deadletters power rolling simulate teeth ci-cluster docs clean

DATA ?= data
MINUTES ?= 10
INSTALLED := .venv/.installed
# The first that is 3.11 or newer.
PYTHON ?= $(shell for each in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$each"; break; }; done)

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make .venv, with raftq and its tools in it

$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "raftq needs Python 3.11 or newer and finds none: install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "setting up .venv with $(PYTHON) (a minute, once)"
	@.venv/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv || { rm -rf .venv; exit 1; }
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[server,chaos,dev]'
	@touch $@

run: setup ## Start a cluster of three nodes here, with a tour of what it does
	@.venv/bin/raftq up --tour --data $(DATA)

test: setup ## Run the tests, all but those that take long
	.venv/bin/pytest -n 2 --dist loadgroup -m "not long"

test-long: setup ## Run those: schemathesis, a hostile pass and a small crowd, each at a cluster
	.venv/bin/pytest -m long

lint: setup ## Check the style
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: setup ## Mend the style
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

types: setup ## Check the types
	.venv/bin/mypy

contracts: setup ## Check which part imports which
	.venv/bin/lint-imports

hostile: setup ## Attack a cluster in every way that we know; writes docs/results.md
	.venv/bin/python -m tests.hostile

fuzz: $(INSTALLED)-fuzz ## Fuzz every decoder that others reach, SECONDS=30 each; HARNESS=one for some
	.venv/bin/python -m tests.fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(HARNESS)

lock: $(INSTALLED)-release ## Write deploy/requirements.lock anew; UPGRADE=1 takes newer versions
	.venv/bin/python -m tests.release.lock $(if $(UPGRADE),--upgrade)

audit: $(INSTALLED)-release ## Look for known vulnerabilities in what the lock file names
	.venv/bin/python -m tests.release.audit

$(INSTALLED)-%: $(INSTALLED)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@

bench: setup ## Measure, in under 5 minutes; writes docs/results.md
	.venv/bin/python -m raftq.bench load --data $(DATA) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(NAME),--name $(NAME))

failover: setup ## Measure how long a killed leader costs
	.venv/bin/python -m raftq.bench failover --data $(DATA)

steady: setup ## Full load for MINUTES=10: no election without a fault
	.venv/bin/python -m raftq.bench steady --data $(DATA) --minutes $(MINUTES)

catchup: setup ## Measure how a follower that lacks MESSAGES=1000000, and an empty node, catch up under load
	.venv/bin/python -m raftq.bench catchup --data $(DATA) $(if $(MESSAGES),--messages $(MESSAGES))

stalls: setup ## Measure the dearest entries, MESSAGES=200000 touched in steps, as one node applies them
	.venv/bin/python -m raftq.bench stalls --data $(DATA) $(if $(MESSAGES),--messages $(MESSAGES))

stream: setup ## Measure enqueues on one WebSocket beside single POSTs
	.venv/bin/python -m raftq.bench stream --data $(DATA)

scale: setup ## Measure MESSAGES=1000000 in one queue, QUEUES=100000, and acks in no order
	.venv/bin/python -m raftq.bench scale --data $(DATA) $(if $(MESSAGES),--messages $(MESSAGES)) $(if $(QUEUES),--queues $(QUEUES))

crowd: setup ## Measure CONNECTIONS=10000 idle and POLLS=5000 long polls on one node
	.venv/bin/python -m raftq.bench crowd --data $(DATA) $(if $(CONNECTIONS),--connections $(CONNECTIONS)) $(if $(POLLS),--polls $(POLLS))

filecopy: setup ## A file of LINES=100000 through a cluster whose leader is killed every 5 seconds
	.venv/bin/python -m tests.cluster.filecopy $(if $(LINES),--lines $(LINES))

deadletters: setup ## MESSAGES=10000 acked, nacked, rejected, left and redriven while the leader is killed
	.venv/bin/python -m tests.cluster.deadletters $(if $(MESSAGES),--messages $(MESSAGES)) $(if $(SEED),--seed $(SEED))

compared: setup ## Each row of docs/compared.md against a fresh cluster; WORD=redrive for some
	.venv/bin/python -m tests.cluster.compared $(WORD)

power: setup ## Cut the power of a cluster under load, ROUNDS=20 times (needs fuse3)
	.venv/bin/python -m tests.power.rounds $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED))

rolling: setup ## Restart node after node of a cluster under load, RUNS=3 times
	.venv/bin/python -m tests.cluster.rolling $(if $(RUNS),--runs $(RUNS)) $(if $(SEED),--seed $(SEED))

simulate: setup ## Simulate SEEDS=100 clusters under faults, on all cores
	.venv/bin/raftq simulate --coverage --seeds $(or $(SEEDS),100) $(if $(FIRST),--first $(FIRST)) $(if $(JOBS),--jobs $(JOBS))

teeth: setup ## Show that the simulator finds stock's faults and mutations of ours; NAME=part of a row's name
	.venv/bin/python -m raftq.chaos.simulation.teeth $(if $(JOBS),--jobs $(JOBS)) $(if $(NAME),--name $(NAME),--page docs/track-record.md)

ci-cluster: setup ## Run the tests on clusters of real processes
	.venv/bin/pytest -m cluster

docs: setup ## Write the generated tables of docs/
	.venv/bin/python -m raftq.node.tables docs

clean: ## Remove what setup, tests and tools made; not ./data
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
