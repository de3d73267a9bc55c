"""What can a visitor take home of their run?

Files are made when they are asked for, in a thread of Streamlit's and up to the step that the menu names: what it
offers, the file's name and its content are of the same step, also while the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from moeviz import export, receipt
from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.host import Run, Twin
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
    twins: tuple[Twin, ...] = ()  # all of them, where more than the base is wanted and there

    @classmethod
    def now(cls, run: Run, with_twins: bool = False) -> Taken:
        state = run.state()
        twins = run.twins if with_twins else ()
        labels = tuple(run.labels_since(-1))
        return cls(run, state.epoch, state.step, run.recipe, run.knobs, labels, twins if len(twins) > 1 else ())

    def rows(self) -> np.ndarray:
        """Its steps (`snapshot.record_dtype`)."""
        return self._told(self.run)

    def _told(self, one: Run | Twin) -> np.ndarray:
        _, rows = one.records_since(-1, -1)
        return rows[rows["step"] <= self.step]

    def table(self, form: str) -> bytes:
        """Every step that is kept, as a table; of twins, one after the other."""
        settings = {"recipe": asdict(self.recipe), "knobs": asdict(self.knobs)}
        if not self.twins:
            return export.to_bytes(self.rows(), settings, form)
        settings["twins"] = [_about(twin) for twin in self.twins]
        return export.to_bytes({twin.name: self._told(twin) for twin in self.twins}, settings, form)

    def settings(self) -> bytes:
        """Recipe and knobs, and which knobs were changed on the way; beside them those of twins."""
        changes = _changed(self.rows(), self.labels)
        more = {
            "twins": [
                _about(twin) | {"changed_on_the_way": _changed(self._told(twin), twin.labels_since(-1))}
                for twin in self.twins
            ]
        }
        return export.settings_json(
            self.recipe, self.knobs, steps=self.step, changed_on_the_way=changes, **(more if self.twins else {})
        )

    def replay(self) -> bytes:
        """The whole run as a page, with its receipt where it has one; of twins, all of them."""
        runs = [replay.Recorded(self.recipe, self.knobs, self.rows(), self.labels, self.run.versions)]
        if self.twins:
            runs = [self._recorded(twin) for twin in self.twins]
        title = replay.title(self.recipe, self.knobs)
        date = f"{datetime.now():%Y-%m-%d}"
        return replay.html([run for run in runs if len(run.rows)], title=title, date=date, receipt=self.receipts())

    def _recorded(self, twin: Twin) -> replay.Recorded:
        note = "; ".join(twin.differences) or ("the base" if twin.parent is None else "like A")
        since = f", parted at step {twin.since:,}" if twin.since else ""
        labels = twin.labels_since(-1)
        return replay.Recorded(
            self.recipe, twin.knobs, self._told(twin), labels, twin.versions, twin.name, note + since
        )

    def receipts(self) -> str:
        """What it takes to train each of them again, or why there is nothing that would."""
        if not self.twins:
            return _receipt(self.run, self.step)
        return "\n".join(f"Twin {twin.name}\n{_receipt(twin, self.step)}" for twin in self.twins)


def _receipt(one: Run | Twin, step: int) -> str:
    try:
        return receipt.to_json(one.receipt(until=step))
    except (SettingsError, KeyError) as refusal:  # a twin that left meanwhile is none any more
        return f"{refusal}\n"


def _changed(rows: np.ndarray, labels: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
    """At which steps of a history which knobs were changed, in words."""
    places, said = np.flatnonzero(np.diff(rows["version"].astype(np.int64))) + 1, dict(labels)
    return [
        {"step": int(rows["step"][place]), "change": said.get(int(rows["version"][place]), "settings changed")}
        for place in places
    ]


def _about(twin: Twin) -> dict[str, Any]:
    """Who a twin is: `parent` by its name; `changes` over the base from the step after `since` on."""
    return {
        "name": twin.name,
        "parent": twin.parent_name or None,
        "since": twin.since,
        "changes": twin.changes,
        "knobs": asdict(twin.knobs),
    }


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


def menu(run: Run, with_twins: bool = False) -> None:
    """A button that opens the choice of files, of the run or of all its twins."""
    menu = st.popover(":material/download:", key="download", help="Download this run.", on_change="rerun")
    if menu.open:
        with menu:
            _files(run, with_twins)


def _files(run: Run, with_twins: bool) -> None:
    taken = Taken.now(run, with_twins)
    if not len(run.records_since(taken.epoch, taken.step - 1)[1]):
        st.caption("The run is starting: there is nothing to download yet. Open the menu again in a moment.")
        return
    whose = f"All {len(taken.twins)} twins, up" if taken.twins else "Up"
    st.caption(f"{whose} to step {taken.step:,}. Open the menu again for newer steps.")
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
    return make(taken if taken.run.state().epoch == taken.epoch else Taken.now(taken.run, bool(taken.twins)))
