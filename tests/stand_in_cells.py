"""What does a process of a sweep need of cells? This much, without the seconds that torch takes to import."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np

from moeviz import farm
from moeviz.config import SettingsError
from moeviz.snapshot import record_dtype
from moeviz.sweep import Cell, Result, Sweep


def serve(connection: Connection, sweep: Sweep, text: bytes | None) -> None:
    """`moeviz.farm._serve` with these cells."""
    sys.modules["moeviz.cells"] = sys.modules[__name__]
    farm._serve(connection, sweep, text)


class Cells:
    """Count steps of a millisecond. Every text is refused."""

    def __init__(self, sweep: Sweep, cells: Sequence[Cell], text: bytes | None = None) -> None:
        if text is not None:
            raise SettingsError("This text is refused. Try another.")
        self.sweep, self.cells, self.made = sweep, cells, 0

    @property
    def done(self) -> bool:
        """Whether no step is left to make."""
        return self.made == self.sweep.steps

    def advance(self) -> None:
        """One step."""
        time.sleep(0.001)
        self.made += 1

    def results(self) -> list[Result]:
        """Rows of the right number and kind."""
        rows = np.zeros(self.made, record_dtype(self.sweep.recipe.num_layers, self.sweep.recipe.num_experts))
        rows["step"] = np.arange(1, self.made + 1)
        return [Result(cell, rows, {"steps": self.made}) for cell in self.cells]
