"""Rewrite every golden run: `python -m tests.golden`."""

from __future__ import annotations

from tests.golden import FOLDER, RUNS, path, write

for old in set(FOLDER.glob("*.json")) - {path(name) for name in RUNS}:
    old.unlink()
for name in RUNS:
    write(name)
    print(f"recorded {path(name).name}")
