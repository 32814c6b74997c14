# `make` says what there is. Everything is built with one profile (release), so that the heavy dependencies are built once.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help build quick test test-hosts lint demo clean

CARGO ?= cargo
# LIBTORCH for the commands after it in the same recipe line; installs libtorch where it is missing.
WITH_LIBTORCH := LIBTORCH="$$(scripts/libtorch.sh)"; export LIBTORCH;
# Every crate that neither is nor links the model. `quick` names its crates one by one: cargo unites the features of
# all crates it is asked for, and one crate that wants libtorch would bring it in for all.
FREE_OF_LIBTORCH := domain process files same-host handshake row-exchange ngram data collective checkpoint telemetry proto coordinator embedding-shard cli

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

# The whole workspace, as `test` does, so that shared dependencies have the same features and are built once.
build: ## the programs, in target/release
	$(WITH_LIBTORCH) $(CARGO) build --release --locked --workspace

# The worker is tested without its `torch` feature and as a library only: a test of its own folder tests/ would make cargo
# build the program too, and target/release/polygram-worker would lose the real model until the next `make build`.
quick: ## tests of everything that needs no libtorch
	unset LIBTORCH; $(CARGO) test --release --locked $(FREE_OF_LIBTORCH:%=-p polygram-%)
	unset LIBTORCH; $(CARGO) test --release --locked -p polygram-worker --no-default-features --lib
	unset LIBTORCH; $(CARGO) test --release --locked -p polygram-tests --lib --test rules --test circles

lint: ## formatting, and clippy with warnings as errors
	$(CARGO) fmt --all --check
	$(WITH_LIBTORCH) $(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --release --locked -p polygram-worker --no-default-features --all-targets -- -D warnings

# The end-to-end tests run the programs in target/release, so those are built first.
test: lint build ## everything: lint, all tests, clusters of real processes
	$(WITH_LIBTORCH) $(CARGO) test --release --locked --workspace

test-hosts: build ## partitions between hosts in network namespaces; needs root and iproute2
	$(WITH_LIBTORCH) $(CARGO) test --release --locked -p polygram-tests --test hosts -- --ignored --nocapture

demo: build ## prepare real text, train on it, evaluate; again: resume
	scripts/demo.sh

clean: ## what was built; prepared data and runs stay
	$(CARGO) clean
