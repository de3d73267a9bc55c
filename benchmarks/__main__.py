"""Measure everything side by side, print it, and write it to RESULTS.md.

    python -m benchmarks                 all sections
    python -m benchmarks layer dense     these sections, printed only

RESULTS.md ends with NOTES.md, which is written by hand.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks import dense, growth, layer, memory, step, twins

SECTIONS = {"layer": layer, "dense": dense, "step": step, "twins": twins, "growth": growth, "memory": memory}
VERSIONS = ("torch", "numpy", "transformers", "mixture-of-experts", "st-moe-pytorch")
HERE = Path(__file__).parent
METHOD = (
    "Medians; the candidates of a comparison take turns in one process on one thread. CPU is processor time of the "
    "process, which other work on the machine hardly moves; ratios are of it, on a GPU of wall times. Forward and "
    "backward unless it says otherwise. T tokens, d model width, E experts, K experts per token, H hidden size of an "
    "expert, L layers."
)


def main(names: list[str]) -> None:
    """Run the sections of these names, or all."""
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise SystemExit(f"There is no section {unknown[0]!r}. Choose from {', '.join(SECTIONS)}.")
    torch.set_num_threads(1)
    parts = []
    for part in report(names or list(SECTIONS)):
        print(part, flush=True)
        parts.append(part)
    if not names:
        (HERE / "RESULTS.md").write_text(
            "\n".join([*parts, (HERE / "NOTES.md").read_text(encoding="utf-8")]), encoding="utf-8"
        )


def report(names: list[str]) -> Iterator[str]:
    """Markdown, piece by piece as it is measured."""
    start = time.perf_counter()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    yield f"# Measurements\n\n{METHOD}\n"
    yield "\n".join(f"- {line}" for line in surroundings(devices)) + "\n"
    for device in devices:
        for name in names:
            yield f"## {name}" + (", on the GPU" if device == "cuda" else "") + "\n"
            yield from map(str, SECTIONS[name].tables(device))
    yield f"Measured in {time.perf_counter() - start:.0f} s.\n"


def surroundings(devices: list[str]) -> Iterator[str]:
    """When, where and with what."""
    busy = f", load average {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    yield f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC{busy}"
    yield f"{_processor()}, {os.cpu_count()} cores, {platform.system()}"
    yield torch.cuda.get_device_name() if "cuda" in devices else "no GPU figure was taken"
    yield f"Python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in VERSIONS)


def _processor() -> str:
    """Its model, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main(sys.argv[1:])
