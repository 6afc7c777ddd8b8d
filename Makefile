# Two commands do everything on a machine with Python 3.11 to 3.13: `make up` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PROTOS := $(shell find protos services -name '*.proto')
TEST ?= tests
JOBS ?= 0

.DEFAULT_GOAL := help
.PHONY: help install up down test fuzz bank kills nightly lint format stubs generated bench lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: $(INSTALLED) ## make .venv with everything, hash-checked

$(INSTALLED): requirements.lock pyproject.toml generator/catalog/build_hook.py $(PROTOS)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"nipmesh needs Python 3.11 to 3.13; {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(INSTALLED)

up: $(INSTALLED) ## run the mesh of mesh.yaml until Ctrl-C
	$(BIN)/nipmesh up

down: $(INSTALLED) ## stop a mesh that runs detached
	$(BIN)/nipmesh down

test: $(INSTALLED) ## run the tests; TEST=tests/unit for a part, JOBS=2 for two at a time
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(TEST)

fuzz: $(INSTALLED) ## 10,000 mutated manifests, every rule of Envoy's protobufs, 50,000 calls of any bytes, BOLT11; NIPMESH_MUTANTS_SEED=2 and NIPMESH_RPC_SEED=2 for others
	NIPMESH_MUTANTS=$${NIPMESH_MUTANTS:-10000} NIPMESH_MUTANTS_SHOWN=1000000 NIPMESH_RULES_RUNS=0 NIPMESH_DIFFERENTIAL_EXAMPLES=5000 \
		NIPMESH_RPC_CASES=$${NIPMESH_RPC_CASES:-50000} NIPMESH_BOLT11_EXAMPLES=$${NIPMESH_BOLT11_EXAMPLES:-20000} \
		$(BIN)/python -m pytest -s tests/mesh/test_manifest_mutants.py tests/mesh/test_rules_differential.py \
		tests/unit/resources/test_resources_differential.py tests/services/fuzzing tests/unit/lightning/test_lightning_bolt11_fuzz.py

bank: $(INSTALLED) ## the bank test, long: 20 seeds of 10,000 operations on each engine; NIPMESH_BANK_SEED=7 runs one seed again
	NIPMESH_BANK_OPERATIONS=$${NIPMESH_BANK_OPERATIONS:-10000} NIPMESH_BANK_SEEDS=$${NIPMESH_BANK_SEEDS:-20} \
		$(BIN)/python -m pytest -s tests/chaos/test_bank.py $(if $(ENGINE),-k $(ENGINE))

kills: $(INSTALLED) ## kill -9 of each process at each step of each flow, on each engine; of services, relay and NATS during 10,000 requests and events each
	NIPMESH_KILLS_SAMPLE=0 NIPMESH_EVENTS_KILLS=10000 NIPMESH_KILLS_REQUESTS=$${NIPMESH_KILLS_REQUESTS:-10000} \
		$(BIN)/python -m pytest -s tests/chaos/test_kills.py tests/services/wallet/test_wallet_kills.py tests/services/wallet/test_wallet_outages.py \
		tests/services/events/test_events_kills.py tests/services/nip/remote_signer/test_remote_signer_kills.py \
		tests/services/nip/remote_signer/test_remote_signer_outages.py

nightly: fuzz bank kills ## all that takes longer than a change can wait for

lint: $(INSTALLED) ## ruff, mypy --strict, buf lint and format, and generated files equal to the committed ones
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m generator.catalog.lint
	$(BIN)/nipmesh schema | diff -u mesh.schema.json -
	$(BIN)/nipmesh schema --reference | diff -u docs/reference.md -
	$(BIN)/nipmesh render --target compose | diff -u compose.yaml -
	$(BIN)/python -m services.reference --check

format: $(INSTALLED) ## rewrite sources in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format -w protos
	$(BIN)/buf format -w services

stubs: $(INSTALLED) ## make the stubs anew
	$(BIN)/python -m generator.catalog.build_hook

generated: $(INSTALLED) ## rewrite mesh.schema.json, docs/reference.md, compose.yaml and what is generated in docs/services
	$(BIN)/nipmesh schema > mesh.schema.json
	$(BIN)/nipmesh schema --reference > docs/reference.md
	$(BIN)/nipmesh render --target compose > compose.yaml
	$(BIN)/python -m services.reference

bench: $(INSTALLED) ## measure; prints tables with ratios
	$(BIN)/python -m benchmarks

lock: ## resolve requirements.lock anew (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command 'make lock' --quiet -o requirements.lock

clean: ## remove what install and runs left
	rm -rf .venv .nipmesh .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find protos services -name '*_pb2*' -delete
