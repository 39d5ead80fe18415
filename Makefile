.PHONY: check lint test bench lock

check: lint  ## what must hold before a commit
	uv run --no-sync pytest -q -m "not slow"

lint:  ## style, types, and the direction of imports
	uv run --no-sync ruff check .
	uv run --no-sync ruff format --check .
	uv run --no-sync mypy
	uv run --no-sync lint-imports

test:  ## everything, the embedded model too
	uv run pytest

bench:  ## speed beside mlx-lm
	uv run afm bench

lock:  ## write the versions that CI installs
	uv export --quiet --no-hashes --no-emit-project --no-header --no-annotate \
		--all-groups --output-file requirements.lock
