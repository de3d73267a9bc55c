"""What can a visitor take home of their run?

Files are made when they are asked for, in a thread of Streamlit's and up to the step that the menu names: what it
offers, the file's name and its content are of the same step, also while the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial

import numpy as np
import streamlit as st

from moeviz import export
from moeviz.config import Knobs, Recipe
from moeviz.host import Run
from moeviz.live import replay


@dataclass(frozen=True)
class Taken:
    """A run up to a step: what all files are made of."""

    run: Run
    epoch: int
    step: int
    recipe: Recipe
    knobs: Knobs
    labels: tuple[tuple[int, str], ...]

    @classmethod
    def now(cls, run: Run) -> Taken:
        state = run.state()
        return cls(run, state.epoch, state.step, run.recipe, run.knobs, tuple(run.labels_since(-1)))

    def rows(self) -> np.ndarray:
        """Its steps (`snapshot.record_dtype`)."""
        _, rows = self.run.records_since(-1, -1)
        return rows[rows["step"] <= self.step]

    def table(self, form: str) -> bytes:
        """Every step that is kept, as a table."""
        return export.to_bytes(self.rows(), {"recipe": asdict(self.recipe), "knobs": asdict(self.knobs)}, form)

    def settings(self) -> bytes:
        """Recipe and knobs, and which knobs were changed on the way."""
        rows = self.rows()
        changed_at = np.flatnonzero(np.diff(rows["version"].astype(np.int64))) + 1
        labels = dict(self.labels)
        changes = [
            {"step": int(rows["step"][row]), "change": labels.get(int(rows["version"][row]), "settings changed")}
            for row in changed_at
        ]
        return export.settings_json(self.recipe, self.knobs, steps=self.step, changed_on_the_way=changes)

    def replay(self) -> bytes:
        """The whole run as a page."""
        recorded = replay.Recorded(self.recipe, self.knobs, self.rows(), self.labels, self.run.versions)
        title = replay.title(self.recipe, self.knobs)
        return replay.html([recorded], title=title, date=f"{datetime.now():%Y-%m-%d}")


@dataclass(frozen=True)
class File:
    """One entry of the menu."""

    label: str
    ending: str
    media_type: str
    icon: str
    make: Callable[[Taken], bytes]
    told: str


FILES = (
    File(
        "Replay (one HTML page)",
        "html",
        "text/html",
        "play_circle",
        Taken.replay,
        "Plays in any browser, also without a network: send it, or put it on a memory stick.",
    ),
    File(
        "Steps as CSV",
        "csv",
        "text/csv",
        "table",
        lambda taken: taken.table("csv"),
        "One line per step. Old steps of a very long run are thinned, extremes kept.",
    ),
    File(
        "Steps as Parquet",
        "parquet",
        "application/vnd.apache.parquet",
        "table",
        lambda taken: taken.table("parquet"),
        "The same, smaller and with the settings in it.",
    ),
    File(
        "Settings as JSON",
        "json",
        "application/json",
        "tune",
        Taken.settings,
        "`python -m moeviz run --settings FILE` trains with them.",
    ),
)


def menu(run: Run) -> None:
    """A button that opens the choice of files."""
    menu = st.popover(":material/download:", key="download", help="Download this run.", on_change="rerun")
    if menu.open:
        with menu:
            _files(run)


def _files(run: Run) -> None:
    taken = Taken.now(run)
    if not len(run.records_since(taken.epoch, taken.step - 1)[1]):
        st.caption("The run is starting: there is nothing to download yet. Open the menu again in a moment.")
        return
    st.caption(f"Up to step {taken.step:,}. Open the menu again for newer steps.")
    for file in FILES:
        st.download_button(
            file.label,
            partial(_made, taken, file.make),
            replay.file_name(taken.recipe, taken.knobs, taken.step, file.ending),
            file.media_type,
            key=f"download_{file.ending}",
            icon=f":material/{file.icon}:",
            help=file.told,
            on_click="ignore",
            width="stretch",
        )


def _made(taken: Taken, make: Callable[[Taken], bytes]) -> bytes:
    """The file. A run that began again since the menu was opened has other steps, recipe and knobs."""
    return make(taken if taken.run.state().epoch == taken.epoch else Taken.now(taken.run))
