"""Does the browser get of each twin exactly what it lacks, in one answer?"""

from __future__ import annotations

import json
import types
import zlib
from dataclasses import asdict

import numpy as np
import pytest

from moeviz.config import Knobs, Recipe
from moeviz.live import assets, charts, twins, visitor, wire
from moeviz.live.twins import KnownTwin, KnownTwins, decode_twins, encode_twins
from moeviz.snapshot import History
from tests import test_live
from tests.stand_in_twins import StandInTwin
from tests.test_host import run_to, wait_until
from tests.test_host_twins import REAL, SIGN, SMALL, caught_up, rows_of_twin
from tests.test_live import FakeHost, assert_same, get, make_rows
from tests.test_survival import hosting

E = 4


def made(number, name, rows=5, changes=None, **said):
    """A twin whose rows are random."""
    twin = StandInTwin(number, name, Knobs(**changes or {}), History(1, E, 2000), changes=changes or {}, **said)
    twin.history.restore(make_rows(1, E, rows, seed=number))
    twin.epoch, twin.version, twin.labels = 7, 2, [(1, "u 0.003 → 0.1"), (2, "top_k 2 → 1")]
    return twin


class FakeRun(test_live.FakeRun):
    """A run of twins. What it counts in an epoch, its twins count too."""

    def __init__(self, *lanes):
        self.recipe, self.version, self.catching_up = Recipe(num_experts=E), 3, None
        self.twins = list(lanes) or [
            made(0, "A", parent=None),
            made(3, "B", changes={"u": 0.1}, differences=["u 0.003 → 0.1"], parted=(1, 37)),
        ]
        self.touched = 0

    def state(self):
        return types.SimpleNamespace(status="ready", message="", notice="", playing=True, epoch=7, step=12)


def rows_of(twin):
    return twin.history.since(-1)[1]


def up_to_date(run, behind=0):
    """What a browser knows that has all, or all but the last rows, of each twin."""
    [(overview, _), *_] = decode_twins(encode_twins(run, KnownTwins()))
    has = {twin.id: KnownTwin(int(rows_of(twin)["step"][-1 - behind]), twin.version) for twin in run.twins}
    return KnownTwins(7, overview["told"], has)


def test_a_new_browser_gets_everything_of_every_twin_in_their_order():
    run = FakeRun()
    (overview, none), *parts = decode_twins(encode_twins(run, KnownTwins()))
    assert (overview["epoch"], overview["version"], overview["step"]) == (7, 3, 12)
    assert (overview["status"], overview["playing"], overview["catching_up"]) == ("ready", True, None)
    assert overview["recipe"] == asdict(run.recipe)
    assert overview["n"] == len(none["step"]) == 0
    assert overview["twins"][1] == {
        "id": 3,
        "name": "B",
        "parent": 0,
        "since": 0,
        "changes": {"u": 0.1},
        "differences": ["u 0.003 → 0.1"],
        "diverged": "",
        "parted": {"step": 1, "token": 37},
    }
    assert overview["twins"][0]["parent"] is None
    assert overview["twins"][0]["parted"] is None
    assert [header["twin"] for header, _ in parts] == [0, 3]
    for (header, columns), twin in zip(parts, run.twins, strict=True):
        assert_same(columns, rows_of(twin))
        assert header["knobs"] == asdict(twin.knobs)
        assert header["version"] == 2
        assert header["marks"] == [[1, "u 0.003 → 0.1"], [2, "top_k 2 → 1"]]


def test_a_browser_that_has_all_but_the_last_rows_gets_those_alone():
    run = FakeRun()
    (overview, _), *parts = decode_twins(encode_twins(run, up_to_date(run, behind=2)))
    assert "twins" not in overview
    assert "recipe" not in overview
    for (header, columns), twin in zip(parts, run.twins, strict=True):
        assert columns["step"].ravel().tolist() == rows_of(twin)["step"][-2:].tolist()
        assert "knobs" not in header
        assert header["marks"] == []


@pytest.mark.parametrize(
    "change", [{"diverged": "The loss is nan."}, {"parted": (2, 0)}, {"differences": ["u 0.003 → 1"]}, {"name": "C"}]
)
def test_what_is_said_of_the_twins_travels_when_it_changes(change):
    run = FakeRun()
    known = up_to_date(run)
    for name, value in change.items():
        setattr(run.twins[1], name, value)
    (overview, _), *_ = decode_twins(encode_twins(run, known))
    assert len(overview["twins"]) == 2
    assert overview["told"] != known.told


def test_changed_knobs_of_one_twin_travel_with_their_mark():
    run = FakeRun()
    known = up_to_date(run)
    known.twins[3] = KnownTwin(known.twins[3].after, 1)
    _, (base, _), (other, _) = decode_twins(encode_twins(run, known))
    assert "knobs" not in base
    assert other["knobs"]["u"] == 0.1
    assert other["marks"] == [[2, "top_k 2 → 1"]]


def test_a_twin_that_came_is_sent_whole_and_one_that_went_is_missing():
    run = FakeRun()
    known = up_to_date(run)
    run.twins = [run.twins[0], made(4, "C")]
    (overview, _), (base, none), (fresh, columns) = decode_twins(encode_twins(run, known))
    assert [said["id"] for said in overview["twins"]] == [base["twin"], fresh["twin"]] == [0, 4]
    assert len(none["step"]) == 0
    assert_same(columns, rows_of(run.twins[1]))


def test_another_beginning_is_sent_whole():
    run = FakeRun()
    has = up_to_date(run)
    (overview, _), *parts = decode_twins(encode_twins(run, KnownTwins(6, has.told, has.twins)))
    assert "recipe" in overview
    assert len(overview["twins"]) == 2
    for (header, columns), twin in zip(parts, run.twins, strict=True):
        assert_same(columns, rows_of(twin))
        assert "knobs" in header


def test_rows_of_a_beginning_that_the_answer_does_not_speak_of_stay_at_home():
    run = FakeRun()
    run.twins[1].epoch = 8
    _, (_, base), (_, other) = decode_twins(encode_twins(run, KnownTwins()))
    assert len(base["step"]) == 5
    assert len(other["step"]) == 0


def test_steps_made_again_for_a_new_twin_are_told():
    run = FakeRun()
    run.catching_up = (120, 340)
    assert decode_twins(encode_twins(run, KnownTwins()))[0][0]["catching_up"] == {"step": 120, "to": 340}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_all_twins_together_send_no_more_rows_than_one_answer_may_have(count):
    run = FakeRun(*(made(number, "ABCD"[number], rows=1900) for number in range(count)))
    _, *parts = decode_twins(encode_twins(run, KnownTwins()))
    sent = [len(columns["step"]) for _, columns in parts]
    assert sum(sent) <= twins.MOST_ROWS
    assert min(sent) >= twins.MOST_ROWS // count // 2, "the newest come whole"
    for (_, columns), twin in zip(parts, run.twins, strict=True):
        assert columns["step"][-1, 0] == rows_of(twin)["step"][-1]


def test_twins_that_a_server_trains_arrive_as_they_are():
    """One that was there, one that joins and catches up, and only what is new after that."""
    with hosting(1, REAL) as host:
        run = host.create(SMALL, SIGN)
        run_to(run, 40)
        number = run.add_twin({"u": 0.1}, since=10)
        wait_until(caught_up(run))
        (overview, _), *parts = decode_twins(encode_twins(run, KnownTwins()))
        assert [said["name"] for said in overview["twins"]] == ["A", "B"]
        assert overview["twins"][1]["differences"] == ["u 0.01 → 0.1"]
        assert overview["twins"][1]["since"] == 10
        for (header, columns), one in zip(parts, (0, number), strict=True):
            assert header["twin"] == one
            assert_same(columns, rows_of_twin(run, one))
        different = parts[1][1]["routed_differently"][:, 0]
        parted = overview["twins"][1]["parted"]
        assert parted["step"] == parts[1][1]["step"][np.flatnonzero(different > 0)[0], 0] > 10
        known = KnownTwins(overview["epoch"], overview["told"], {one: KnownTwin(40, 0) for one in (0, number)})
        run_to(run, 45)
        _, *parts = decode_twins(encode_twins(run, known))
        assert [columns["step"].ravel().tolist() for _, columns in parts] == [[41, 42, 43, 44, 45]] * 2


def pull(known=None, host=None, headers=()):
    query = "" if known is None else f"known={known if isinstance(known, str) else json.dumps(known)}"
    return get("/moeviz/run/known/twins", query, headers, host or FakeHost(FakeRun()))


def test_the_route_answers_with_the_parts():
    host = FakeHost(FakeRun())
    status, headers, body = pull(None, host)
    assert status == 200
    assert body == encode_twins(host.run, KnownTwins())
    assert headers["cache-control"] == "no-store"
    assert headers["content-encoding"] == "identity"
    assert host.run.touched == 1


def test_the_route_reads_what_is_known():
    host = FakeHost(FakeRun())
    known = up_to_date(host.run)
    told = {str(number): {"after": has.after, "version": has.version} for number, has in known.twins.items()}
    _, _, body = pull({"epoch": 7, "told": known.told, "twins": told}, host)
    assert body == encode_twins(host.run, known)
    assert all(len(columns["step"]) == 0 for _, columns in decode_twins(body))


def test_the_whole_answer_is_deflated_for_whoever_can_read_it():
    host = FakeHost(FakeRun())
    _, headers, body = pull(None, host, [("accept-encoding", "gzip, deflate")])
    assert headers["content-encoding"] == "deflate"
    assert zlib.decompress(body) == encode_twins(host.run, KnownTwins())


def test_twins_belong_to_the_browser_whose_run_they_are():
    host = FakeHost(FakeRun())
    assert pull(None, host, [("cookie", f"{visitor.COOKIE}=mine")])[0] == 200
    status, _, body = pull(None, host, [("cookie", f"{visitor.COOKIE}=theirs")])
    assert status == 403
    assert "another browser" in json.loads(body)["error"]
    assert host.run.touched == 1


def test_an_unknown_run_is_a_sentence():
    status, _, body = get("/moeviz/run/nobody/twins", "", (), FakeHost(FakeRun()))
    assert status == 404
    assert "released" in json.loads(body)["error"]


@pytest.mark.parametrize(
    "known",
    [
        *("no json", "[]", "7", "null", "[" * 5000, '{"twins": 3}', '{"twins": {"0": 5}}', '{"twins": [{}]}'),
        *({"epoch": "x"}, {"epoch": None}, {"told": -2}, {"twins": {"x": {}}}, {"twins": {"0": {"after": 1.5}}}),
        *({"twins": {"0": {"version": [1]}}}, {"epoch": 2**60}, {"twins": {str(n): {} for n in range(101)}}),
    ],
)
def test_what_is_not_understood_is_answered_with_a_sentence(known):
    status, _, body = pull(known)
    assert status == 400
    said = json.loads(body)["error"]
    assert said.endswith(".")
    assert len(said) < 200


def test_an_answer_without_news_is_small():
    said = ["Balancing none → Loss-free bias", "u 0.003 → 0.1"]
    run = FakeRun(*(made(number, "ABCD"[number], differences=said) for number in range(4)))
    everything, news = (len(wire.deflate(encode_twins(run, known))) for known in (KnownTwins(), up_to_date(run)))
    assert news < 200 < everything


def test_a_page_asks_for_the_modules_that_it_needs_and_no_others():
    playground, compare = assets.modules("main.js"), assets.modules("compare.js")
    assert (playground[-1], compare[-1]) == ("main.js", "compare.js")
    assert not {"compare.js", "lanes.js", "twin_lines.js"} & set(playground)
    assert {"wire.js", "store.js", "step_chart.js", "lanes.js"} <= set(compare)
    scripts = {name for name in assets.static() if name.endswith(".js")}
    asked = {name for entry in (*assets.ENTRIES, "replay.js") for name in assets.modules(entry)}
    assert asked == scripts, "a module that no page asks for"


def test_every_chart_of_twins_is_explained():
    said = charts.texts_of_twins()["charts"]
    assert {"load", "history", "max_vio", "loss", "difference", "spread", "dropped", "routed"} <= set(said)
    assert all(text["meaning"].endswith(".") and text["formula"] and text["source"] for text in said.values())
