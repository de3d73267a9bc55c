"""How much memory does the expert part need at its peak?

    python -m benchmarks.memory ours 4096 128 64 4 128

prints bytes: the largest resident set during one forward and backward pass, less the resident set before it, when
weights and inputs are there and a small pass has loaded the code. Each figure comes from a fresh process, because freed
memory that is used again would not be seen. Gradients are counted: a dense network has those of K H hidden units, ours
of E H. On a GPU it is the allocator's own peak; on a processor it is measured on Linux only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.cells import Cell, weights_of
from benchmarks.dense import choice, dense, experts
from benchmarks.measure import Table, Work, backward
from benchmarks.peers import deepseek
from moeviz.experts import mix

SIZES = [Cell(4096, 128, 64, 4, 128), Cell(1024, 64, 256, 8, 64)]
CANDIDATES = ("dense", "ours", "transformers, grouped_mm")
WARM_UP = Cell(64, 16, 4, 2, 16)
# glibc gives each tensor pages of its own and takes them back at once; else what is free but kept would count.
PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536"}
CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def tables(device: str) -> Iterator[Table]:
    """Peaks and their ratio to the dense bound."""
    if device == "cpu" and not CLEAR.exists():
        return
    how = "the allocator's peak" if device == "cuda" else "largest resident set of a fresh process for each"
    rows = []
    for cell in SIZES:
        peaks = {name: _peak(name, cell, device) for name in CANDIDATES}
        rows += [
            (f"{cell}: {name}", f"{peak / 1e6:.0f}", f"{peak / peaks['dense']:.2f}") for name, peak in peaks.items()
        ]
        rows.append((f"{cell}: of which gradients of all experts", f"{3 * 4 * cell.E * cell.d * cell.H / 1e6:.0f}", ""))
    note = f"Beyond inputs and weights, gradients included: {how}."
    yield Table("Peak memory of the expert part, forward and backward", ("", "MB", "× dense"), rows, note)


def _peak(name: str, cell: Cell, device: str) -> int:
    if device == "cuda":
        return _peak_on_gpu(_work(name, cell, device))
    command = [sys.executable, "-m", "benchmarks.memory", name, *map(str, cell)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | PAGES).stdout)


def _work(name: str, cell: Cell, device: str) -> Work:
    weights = weights_of(cell, device)
    if name == "dense":
        return dense(weights, cell)
    if name == "ours":
        return experts(mix, weights, cell)
    theirs, (chosen_TK, gates_TK) = deepseek(cell, weights, "grouped_mm").experts, choice(weights, cell)
    leaves = [weights.x_Td, gates_TK, *theirs.parameters()]
    return backward(lambda: theirs(weights.x_Td, chosen_TK, gates_TK), leaves, weights.grad_Td)


def _peak_on_gpu(work: Work) -> int:
    work()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def _peak_here(work: Work) -> int:
    """Linux forgets the largest resident set on demand."""
    CLEAR.write_text("5")
    before = _largest_resident_set()
    work()
    return _largest_resident_set() - before


def _largest_resident_set() -> int:
    """Not `getrusage`, whose figure a new process takes over from the one that started it."""
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def main(name: str, *cell: str) -> None:
    """In a fresh process: print the peak of one candidate."""
    torch.set_num_threads(1)
    _work(name, WARM_UP, "cpu")()
    print(_peak_here(_work(name, Cell(*map(int, cell)), "cpu")))


if __name__ == "__main__":
    main(*sys.argv[1:])
