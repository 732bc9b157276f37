# Every target does its own set-up (scripts/setup.sh says what it installs). `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help build demo test e2e bench bench-peers bench-programs soak sanitize loom lint fuzz clean setup-%

CARGO ?= cargo
HOST_TARGET := x86_64-unknown-linux-gnu
FUZZ_SECONDS ?= 60
SOAK_MINUTES ?= 30
SANITIZERS ?= address thread
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)

help: ## List the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup-%:
	@scripts/setup.sh $*

build: setup-test ## Build the agent and the static plugin (below target/)
	$(CARGO) build --release --package tunproxy-agent
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --release --target $(HOST_TARGET) --package tunproxy-cni-plugin

demo: setup-test ## Show the main job on this machine: real pods, a policy, a table of what happened (as root)
	@echo "building (some minutes the first time)"
	@$(CARGO) build --quiet --release --package tunproxy-agent --package tunproxy-cni-plugin --package tunproxy-e2e --bins
	@TUNPROXY_BIN_DIR=$(TARGET)/release $(TARGET)/release/tunproxy-demo

test: setup-test ## Run all tests that need Rust and Debian packages only (as root)
	$(CARGO) build --workspace --bins
	@# Under nohup or in the background, signals come ignored; programs that are to be ended by them would not be.
	env --default-signal $(CARGO) test --workspace --no-fail-fast

e2e: setup-e2e ## Run the plugin under cnitool, containerd and runc, and two minutes of mixed traffic (as root)
	scripts/runtime-tools.sh
	$(CARGO) test --package tunproxy-e2e --test runtime --test soak -- --ignored

soak: setup-test bench-programs ## Mixed traffic with pods coming and going for SOAK_MINUTES (30): nothing grows, no octet is wrong (as root)
	TUNPROXY_BIN_DIR=$(TARGET)/release TUNPROXY_SOAK_MINUTES=$(SOAK_MINUTES) $(CARGO) test --package tunproxy-e2e \
		--test soak -- --ignored --nocapture

loom: setup-test ## Try what threads share in every order that they may come to it (loom)
	RUSTFLAGS="--cfg tunproxy_loom" $(CARGO) test --package tunproxy-datapath --package tunproxy-agent --lib \
		--target-dir $(TARGET)/loom loom_tests

sanitize: setup-sanitize ## Unit tests and a real agent under AddressSanitizer and ThreadSanitizer (nightly; as root)
	scripts/sanitize.sh $(SANITIZERS)

bench: setup-bench bench-programs ## Measure the routed path and ours in the same run; table, and JSON in target/bench.json (as root)
	@TUNPROXY_BIN_DIR=$(TARGET)/release $(TARGET)/release/tunproxy-bench run --json $(TARGET)/bench.json $(BENCH_ARGS)

bench-peers: setup-peers bench-programs ## Measure pasta, tun2proxy and shadowsocks-rust in the same run too (as root)
	@TUNPROXY_BIN_DIR=$(TARGET)/release $(TARGET)/release/tunproxy-bench run --peers .build/peers/bin \
		--json $(TARGET)/bench-peers.json $(BENCH_ARGS)

bench-programs:
	@echo "building (some minutes the first time)"
	@$(CARGO) build --quiet --release --package tunproxy-agent --package tunproxy-bench
	@RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --quiet --release --target $(HOST_TARGET) --package tunproxy-cni-plugin
	@cp $(TARGET)/$(HOST_TARGET)/release/tunproxy $(TARGET)/release/tunproxy

lint: setup-lint ## Check format, lints, licences, purity and shell scripts
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	cd fuzz && $(CARGO) fmt --check && $(CARGO) clippy --all-targets --locked -- -D warnings
	$(CARGO) deny --log-level error check licenses bans sources
	scripts/purity.sh
	shellcheck scripts/*.sh .ci/run

fuzz: setup-fuzz ## Run every fuzz target for FUZZ_SECONDS (60), or FUZZ_RUNS times
	scripts/fuzz.sh $(if $(FUZZ_RUNS),runs $(FUZZ_RUNS),$(FUZZ_SECONDS))

clean: ## Remove everything that was built
	$(CARGO) clean
	rm -rf .build
