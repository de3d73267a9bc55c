"""Are the files of the Playground those of the run, as far as the menu said?"""

from __future__ import annotations

import io
import json
import types

import numpy as np
import pyarrow.parquet
import pytest
from streamlit.testing.v1 import AppTest

from moeviz import export
from moeviz.config import Knobs, Recipe
from moeviz.ui import downloads, hosting
from tests.test_live import make_rows
from tests.test_pages import APP, run_of, wait_until
from tests.test_replay import told_in

VERSIONS = {0: Knobs(), 1: Knobs(u=0.1), 2: Knobs(u=0.1, top_k=1)}


class StandIn:
    """A run at some step that goes on, or begins again, when the test says so."""

    def __init__(self, count=30):
        self.recipe, self.knobs, self.versions = Recipe(num_experts=4), VERSIONS[2], VERSIONS
        self.rows, self.epoch, self.count = make_rows(1, 4, 60), 1, count

    def state(self):
        return types.SimpleNamespace(epoch=self.epoch, step=int(self.rows["step"][self.count - 1]))

    def labels_since(self, version):
        return [(1, "u 0.003 → 0.1"), (2, "top_k 2 → 1")]

    def records_since(self, epoch, step):
        seen = self.rows[: self.count]
        return self.epoch, seen[seen["step"] > (step if epoch == self.epoch else -1)]


def made(taken, ending):
    [file] = [file for file in downloads.FILES if file.ending == ending]
    return downloads._made(taken, file.make)


def steps_in(data):
    return pyarrow.parquet.read_table(io.BytesIO(data))["step"].to_pylist()


def test_files_end_at_the_step_that_the_menu_named():
    run = StandIn()
    taken = downloads.Taken.now(run)
    run.count = 60
    expected = run.rows["step"][:30].tolist()
    assert steps_in(made(taken, "parquet")) == expected
    assert made(taken, "csv").count(b"\n") == 31
    _, [(header, columns)] = told_in(made(taken, "html"))
    assert columns["step"].ravel().tolist() == expected
    seen = sorted({str(version) for version in run.rows["version"][:30].tolist()})
    assert sorted(header["versions"]) == seen


def test_a_run_that_began_again_gives_what_it_is_now():
    run = StandIn()
    taken = downloads.Taken.now(run)
    run.epoch, run.count, run.recipe, run.rows = 2, 5, Recipe(num_experts=8), make_rows(1, 8, 60, seed=9)
    assert steps_in(made(taken, "parquet")) == run.rows["step"][:5].tolist()
    assert export.read_settings(made(taken, "json"))[0] == run.recipe


def test_settings_say_what_changed_on_the_way_and_where():
    run = StandIn(60)
    rows = run.rows
    told = json.loads(made(downloads.Taken.now(run), "json"))
    expected = [
        {"step": int(rows["step"][np.argmax(rows["version"] == version)]), "change": label}
        for version, label in run.labels_since(-1)
        if version in rows["version"] and rows["version"][0] != version
    ]
    assert expected
    assert told["changed_on_the_way"] == expected
    assert told["steps"] == int(rows["step"][-1])
    assert (told["recipe"]["num_experts"], told["knobs"]["u"]) == (4, 0.1)


@pytest.fixture
def _end_the_workers():
    yield
    hosting.host().shutdown()
    hosting.host.cache_clear()


@pytest.mark.usefixtures("_end_the_workers")
def test_the_menu_makes_nothing_until_it_is_open(monkeypatch):
    """It is drawn with every script run, and a long run is many megabytes."""
    asked = []
    monkeypatch.setattr(downloads.Taken, "rows", lambda self: asked.append(self.step))
    at = AppTest.from_file(APP, default_timeout=60).run()
    assert not at.exception
    run = run_of(at)
    run.step(3)
    wait_until(lambda: run.touch() or run.state().step == 3)
    assert not at.run().exception
    assert not at.get("download_button")
    monkeypatch.setattr(downloads.st, "popover", open_popover)
    at.run()
    assert not at.exception
    assert [button.proto.label for button in at.get("download_button")] == [file.label for file in downloads.FILES]
    assert any("Up to step 3." in caption.value for caption in at.caption)
    assert not asked


def open_popover(*_, **__):
    """Streamlit's tests cannot open one."""
    container = downloads.st.container()
    container.open = True
    return container
