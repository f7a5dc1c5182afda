# The two commands on a fresh machine: `make quickstart` and `make test`. Both set up what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.dev
# What tests run: name of the program, and of its Debian package where that differs.
PROGRAMS := age zstd openssl podman runc mmdebstrap bwrap:bubblewrap mbsync:isync setfacl:acl nsenter:util-linux setpriv:util-linux ssh:openssh-client ip:iproute2 sshd:openssh-server mkfs.exfat:exfatprogs mount.exfat-fuse:exfat-fuse aws:awscli
# What pip builds borg from.
LIBRARIES := libacl1-dev libssl-dev liblz4-dev libzstd-dev libxxhash-dev pkg-config

.PHONY: quickstart test lint cases bench bench-quick campaign clean

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mailbackup needs Python 3.11 or newer"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(DEV): $(READY)
	@pkg-config --exists libcrypto liblz4 libzstd libxxhash 2>/dev/null && test -e /usr/include/sys/acl.h || { \
		if [ "$$(id -u)" = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $(LIBRARIES) >/dev/null; \
		else echo "borg is built with the tests and needs libraries; run: sudo apt-get install $(LIBRARIES)"; exit 1; fi; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

quickstart: $(READY)
	@$(BIN)/mailbackup quickstart $(MAIL)

test: $(DEV) programs
	@$(BIN)/python -m pytest -n auto --dist worksteal
	@$(MAKE) --no-print-directory cases

# As root what the tests need is installed; others are told the line that does it.
.PHONY: programs
programs:
	@missing=; for program in $(PROGRAMS); do command -v $${program%%:*} >/dev/null || missing="$$missing $${program##*:}"; done; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $$missing >/dev/null; \
		else echo "the tests need programs that are missing; run: sudo apt-get install$$missing"; exit 1; fi; fi

lint: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

cases: $(DEV)
	@$(BIN)/python -m tests.cases

# Writes tables below .bench/; what is worth keeping goes into docs/performance.md by hand, with what it means.
bench: $(DEV)
	@mkdir -p .bench
	@for scenario in office spamassassin small600k; do \
		$(BIN)/python -m tests.bench.run --scenario $$scenario --out .bench/$$scenario.md || exit 1; done

bench-quick: $(DEV)
	@$(BIN)/python -m tests.bench.run --quick

# The long form of the random tests; `make test` runs a fixed, seeded share of them.
campaign: $(DEV) programs
	@MAILBACKUP_CAMPAIGN=1 $(BIN)/python -m pytest -n auto --dist worksteal tests/vault tests/upkeep/simulation

clean:
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
