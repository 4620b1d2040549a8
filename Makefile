# Everything that is done with this repository. `make` alone lists it; the scripts are in tools/.

.DEFAULT_GOAL := help
.PHONY: help run install uninstall deb test-deb test test-vm check fuzz bench reliability docs fmt clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## build, then show this host's TCP connections; installs what building needs
	@tools/run.sh

install: ## install it with manual pages, completions, unit and settings; PREFIX=/usr/local, DESTDIR for a package's root
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' tools/install.sh

uninstall: ## remove what `make install` installed, but for settings that were changed
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' tools/install.sh uninstall

deb: ## a package for Debian, in target/debian
	@tools/deb.sh

test-deb: ## the same, installed, run and removed again in a container; as root
	@tools/deb.sh test

test: ## everything that this machine can test; installs the tests' tools when root
	@tools/test.sh

check: ## what needs no root: format, lints, dependencies, API documentation, unit tests
	@tools/test.sh check

test-vm: ## tcptide on Debian's kernels in virtual machines (x86-64, no root); ARGS="6.1 newest", or --write for docs/kernels.md
	@tools/vm.sh $(ARGS)

fuzz: ## bytes of others until something breaks; ARGS="--seconds 600 dns http", else all targets for a minute each
	@tools/fuzz.sh $(ARGS)

bench: ## what tcptide costs, beside nothing and other tools, as root, in a quarter of an hour; ARGS=--help tells more
	@cargo build --locked --release --workspace
	@$${CARGO_TARGET_DIR:-target}/release/bench $(or $(ARGS),overhead)

reliability: ## whether the agent stands what may happen to it, as root, some six minutes; TCPTIDE_SECONDS=600 for longer
	@cargo build --locked --release -p tcptide
	@TCPTIDE=$$(realpath $${CARGO_TARGET_DIR:-target}/release/tcptide) \
		cargo test --locked -p functional --test reliability -- --ignored --nocapture --test-threads=1

docs: ## write the generated pages in docs/ and dashboards anew
	@TCPTIDE_WRITE_DOCS=1 cargo test --quiet -p tcptide-model -p tcptide
	@git status --short docs packaging

fmt: ## format the Rust and the C
	@cargo fmt --all
	@find crates/probe/bpf -name '*.[ch]' -exec clang-format -i {} +

clean: ## remove what was built
	@cargo clean
