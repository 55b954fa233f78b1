# agd: audit-gated discipline for PostgreSQL. `make` alone tells what there is.
#
# Every target first makes the machine ready (dev/setup.py): what is missing goes into .tools/, nothing global changes.

PYTHON  ?= python3
PREFIX  ?= /usr/local
VERSION ?=
ONLY    ?=
FILTER  ?=
ARGS    ?=

export PG_CONFIG

.DEFAULT_GOAL := help
.PHONY: help demo test psql bench instructions fuzz install package check clean

help:
	@echo 'agd: no audit record, no write.'
	@echo
	@echo '  make demo                          see it work, in a throw-away PostgreSQL'
	@echo '  make psql                          a psql in a throw-away PostgreSQL with agd loaded'
	@echo '  make install PG_CONFIG=…/pg_config install agd into your PostgreSQL (PREFIX=/usr/local for the command line)'
	@echo '  make package                       the same as a tarball, in target/package'
	@echo
	@echo '  make test                          every test, on one PostgreSQL version'
	@echo '       VERSION=15,16,18              on these versions'
	@echo '       ONLY=core|pgtest|live|regress one kind of test'
	@echo '       FILTER=name                   tests whose name contains this'
	@echo '  make bench                         what it costs (ARGS=… goes to the benchmark)'
	@echo '  make instructions                  one backend, instructions a TPC-B transaction (valgrind; ARGS="--version 18")'
	@echo '  make fuzz                          every parser, ten minutes each (ARGS="--seconds 60 note" for less)'
	@echo '  make check                         formatting, lints and the layout rules'
	@echo '  make clean                         remove what was built (.tools stays: it is slow to make)'
	@echo
	@echo 'PostgreSQL: $$PG_CONFIG, else the pg_config on PATH (15 to 18, with server headers), else one is fetched.'

demo:
	@$(PYTHON) dev/build.py run demo $(ARGS)

psql:
	@$(PYTHON) dev/build.py run cluster $(ARGS)

bench:
	@$(PYTHON) dev/build.py run bench $(ARGS)

instructions:
	@$(PYTHON) dev/instructions.py $(ARGS)

fuzz:
	@$(PYTHON) dev/fuzz.py $(ARGS)

test:
	@$(PYTHON) dev/test.py $(if $(VERSION),--version $(VERSION)) $(if $(ONLY),--only $(ONLY)) $(FILTER)

install:
	@$(PYTHON) dev/build.py install --prefix '$(PREFIX)'

package:
	@$(PYTHON) dev/build.py package

check:
	@.ci/run check

clean:
	cargo clean
