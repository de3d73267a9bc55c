"""Are the files of the Playground those of the run, as far as the menu said?"""

from __future__ import annotations

import io
import json
import types
from dataclasses import asdict, replace

import numpy as np
import pyarrow.compute
import pyarrow.parquet
import pytest

from moeviz import export
from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.receipt import from_json
from moeviz.ui import downloads
from tests.test_host_twins import SIGN, SMALL, to_step
from tests.test_live import make_rows
from tests.test_pages import open_page, run_of, shared_host, wait_until
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

    def receipt(self, until):
        raise SettingsError(f"No receipt of step {until}.")

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
    told, [(header, columns)] = told_in(made(taken, "html"))
    assert told["receipt"] == f"No receipt of step {expected[-1]}.\n"
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


def test_the_menu_makes_nothing_until_it_is_open(monkeypatch):
    """It is drawn with every script run, and a long run is many megabytes."""
    asked = []
    monkeypatch.setattr(downloads.Taken, "rows", lambda self: asked.append(self.step))
    at = open_page()
    assert not at.exception
    run = run_of(at)
    run.step(3)
    wait_until(lambda: run.touch() or run.state().step == 3)
    assert not at.run().exception
    assert not at.get("download_button")
    monkeypatch.setattr(downloads.st, "popover", open_popover)
    at.run()
    assert not at.exception
    files = [file.label for file in downloads.FILES]
    assert [button.proto.label for button in at.get("download_button")] == [*files, "Download receipt (JSON)"]
    assert any("Up to step 3." in caption.value for caption in at.caption)
    assert not asked


def open_popover(*_, **__):
    """Streamlit's tests cannot open one."""
    container = downloads.st.container()
    container.open = True
    return container


@pytest.fixture
def twins():
    """A, B from the start with u = 0.1, C from A's step 4 on with softmax; A's top-k was changed after step 6."""
    run = shared_host().create(SMALL, SIGN)
    run.add_twin({"u": 0.1})
    to_step(run, 6)
    run.set_knobs(replace(SIGN, top_k=3))
    to_step(run, 8)
    run.add_twin({"gating": "softmax"}, parent=0, since=4)
    to_step(run, 9)
    return run


def test_a_table_of_twins_says_whose_each_step_is(twins):
    taken = downloads.Taken.now(twins, with_twins=True)
    table = pyarrow.parquet.read_table(io.BytesIO(made(taken, "parquet")))
    assert table.column_names[0] == "twin"
    told = list(zip(table["twin"].to_pylist(), table["step"].to_pylist(), strict=True))
    assert told == [(name, step) for name in "ABC" for step in range(10)]
    for twin in twins.twins:
        _, rows = twin.records_since(-1, -1)
        losses = table.filter(pyarrow.compute.equal(table["twin"], twin.name))["task_loss"].to_numpy()
        np.testing.assert_array_equal(losses, rows["task_loss"])
    about = json.loads(table.schema.metadata[b"moeviz"])["twins"]
    assert [(one["name"], one["parent"], one["since"], one["changes"]) for one in about] == [
        ("A", None, 0, {}),
        ("B", "A", 0, {"u": 0.1}),
        ("C", "A", 4, {"gating": "softmax"}),
    ]
    lines = made(taken, "csv").decode().splitlines()
    assert lines[0].startswith('"twin","step"')
    assert len(lines) == 1 + len(told)


def test_settings_of_twins_name_changes_parents_and_where_they_parted(twins):
    told = json.loads(made(downloads.Taken.now(twins, with_twins=True), "json"))
    a, b, c = told["twins"]
    assert (b["changes"], b["knobs"]["u"], b["since"], b["parent"]) == ({"u": 0.1}, 0.1, 0, "A")
    assert (c["changes"], c["knobs"]["gating"], c["since"], c["parent"]) == ({"gating": "softmax"}, "softmax", 4, "A")
    assert [change["step"] for change in a["changed_on_the_way"]] == [7]
    assert [change["step"] for change in c["changed_on_the_way"]] == [5, 7]
    assert export.read_settings(json.dumps(told).encode()) == (SMALL, replace(SIGN, top_k=3))


def test_a_replay_of_twins_holds_all_of_them_and_their_receipts(twins):
    taken = downloads.Taken.now(twins, with_twins=True)
    told, runs = told_in(made(taken, "html"))
    assert [(run["name"], run["note"]) for run in told["runs"]] == [
        ("A", "the base"),
        ("B", "u 0.01 → 0.1"),
        ("C", "gating sigmoid → softmax, parted at step 4"),
    ]
    for twin, (header, columns) in zip(twins.twins, runs, strict=True):
        assert columns["step"].ravel()[-1] == 9
        assert header["knobs"] == asdict(twin.knobs)
        assert set(header["versions"]) == set(map(str, np.unique(columns["version"])))
    texts = [text[text.index("\n") + 1 :] for text in told["receipt"].split("Twin ")[1:]]
    assert [from_json(text) for text in texts] == [twin.receipt() for twin in twins.twins]


def test_a_page_that_shows_one_run_gives_that_run(twins):
    taken = downloads.Taken.now(twins)
    assert steps_in(made(taken, "parquet")) == list(range(10))
    told, runs = told_in(made(taken, "html"))
    assert len(runs) == 1
    assert from_json(told["receipt"]) == twins.receipt()
    assert "twins" not in json.loads(made(taken, "json"))
