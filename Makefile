# The words of this project: make demo, make test, make lint, make bench. Each installs into .venv what it needs, once.
PY := .venv/bin/python
N ?= 20

.PHONY: help demo demo-real test test-repeat interop lint bench errors settings clean install install-demo

help:
	@echo 'make demo            install, then train, share, average and deploy on this machine (./demo/report.html)'
	@echo 'make demo-real       unfinished: the same story on a real model (93 MB to download); its proof still refuses what it would serve'
	@echo 'make test            install the tests too, then run them'
	@echo 'make test-repeat     end-to-end and network tests N=$(N) times'
	@echo 'make interop         js-libp2p and go-libp2p against our nodes (fetches both; needs npm)'
	@echo 'make lint            ruff and mypy --strict'
	@echo 'make bench           every benchmark; make bench-NAME one of them'
	@echo 'make errors          write docs/errors.md anew from orchd/errors.py'
	@echo 'make settings        write docs/settings.md anew from orchd/config.py'
	@echo 'make clean           remove .venv and everything that these made'

install-demo:
	@sh tools/install.sh demo

install:
	@sh tools/install.sh test

demo: install-demo
	@.venv/bin/orchctl demo --out ./demo

demo-real: install-demo
	@.venv/bin/orchctl demo --real --out ./demo

# Two processes whatever the machine: much of it waits, and each may hold a daemon with torch beside it. A file stays together.
test: install
	@$(PY) -m pytest -n 2 --dist loadfile

# Network and processes are where luck could hide: these must be green every time. Real daemons and real hosts wait a
# lot, so the two halves run side by side.
test-repeat: install
	@for n in $$(seq 1 $(N)); do \
		echo "run $$n of $(N)"; \
		$(PY) -m pytest -m 'not long' tests/e2e & daemons=$$!; \
		$(PY) -m pytest -m 'not long' tests/net tests/rpc tests/attacks/net; network=$$?; \
		wait $$daemons && test $$network = 0 || exit 1; \
	done

# Node 22, js-libp2p and p2pd come into folders of their own; nothing of the system or of .venv is changed.
interop: install
	@$(PY) tests/interop/fetch.py
	@ORCHD_INTEROP=1 $(PY) -m pytest tests/interop

lint: install
	@.venv/bin/ruff check
	@.venv/bin/mypy

bench: $(patsubst benchmarks/%/__main__.py,bench-%,$(wildcard benchmarks/*/__main__.py))

bench-%: install
	@$(PY) -m benchmarks.$*

errors: install-demo
	@$(PY) tools/error_pages.py --write

settings: install-demo
	@$(PY) tools/settings_page.py --write

clean:
	rm -rf .venv demo build dist orchd.egg-info benchmarks/results tests/interop/.p2pd tests/interop/js/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
