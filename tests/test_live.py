"""Does the browser get exactly what the run recorded, and does a strange request get a plain answer?"""

import asyncio
import gzip
import json
import types
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeviz.config import Knobs, Recipe
from moeviz.live import assets, charts, wire
from moeviz.live.routes import routes
from moeviz.snapshot import History, record_dtype


def make_rows(num_layers, num_experts, count, dropping, seed=0):
    """Random rows as a `History` would return them."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(count, record_dtype(num_layers, num_experts))
    rows["step"] = np.cumsum(rng.integers(1, 5, count))
    rows["version"] = np.sort(rng.integers(0, 3, count))
    for name in ("task_loss", "added_loss", "max_vio", "fan_out", "dropped_fraction", "steps_per_second"):
        rows[name] = rng.random(rows[name].shape)
    rows["eval_loss"] = np.where(np.arange(count) % 3 == 0, 0.5, np.nan)
    rows["bias"] = rng.normal(size=rows["bias"].shape) * 10.0 ** rng.integers(-4, 2)
    rows["load"] = rng.integers(0, 65536, rows["load"].shape)
    rows["kept_load"] = np.minimum(rows["load"], 999) if dropping else rows["load"]
    return rows


@settings(deadline=None, max_examples=60)
@given(
    num_layers=st.integers(1, 3),
    num_experts=st.integers(2, 64),
    count=st.integers(0, 20),
    dropping=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_wire_returns_what_was_sent(num_layers, num_experts, count, dropping, seed):
    rows = make_rows(num_layers, num_experts, count, dropping, seed)
    header, arrays = wire.decode(wire.encode(rows, {"epoch": 7}))
    assert (header["epoch"], header["n"], header["layers"], header["experts"]) == (7, count, num_layers, num_experts)
    for name in wire.COLUMNS:
        sent = rows[name].reshape(count, int(np.prod(rows[name].shape[1:])))
        if name == "bias":
            largest = np.abs(sent).max(initial=0.0)
            np.testing.assert_allclose(arrays[name], sent, rtol=0, atol=largest / 32767)
        else:
            np.testing.assert_array_equal(arrays[name], sent)


@pytest.mark.parametrize("dropping", [False, True])
def test_the_kept_load_travels_only_when_it_differs(dropping):
    header, _ = wire.decode(wire.encode(make_rows(1, 8, 5, dropping), {}))
    assert ("kept_load" in [name for name, _, _ in header["columns"]]) == dropping


def test_every_column_begins_where_a_typed_array_may_begin():
    message = wire.encode(make_rows(2, 5, 3, True), {"message": "é"})
    length = int.from_bytes(message[:4], "little")
    assert length % 4 == 0
    assert len(message) % 4 == 0


class FakeRun:
    """A run of three steps whose settings changed once."""

    recipe = Recipe(num_experts=4)
    knobs = Knobs()
    version = 1

    def __init__(self):
        self.touched, self.checked = 0, False
        self.history = History(1, 4, 16)
        self.history._rows["step"][:3] = [0, 1, 2]
        self.history._rows["load"][:3] = 5
        self.history._rows["kept_load"][:3] = 5
        self.history._header["count"] = 3

    def touch(self):
        self.touched += 1

    def state(self):
        return types.SimpleNamespace(status="ready", message="", playing=True, epoch=0)

    def records_since(self, epoch, step, limit):
        return self.history.since(step if epoch == self.history.epoch else -1, limit)

    def truth(self):
        return (3, [{"name": "E1", "holds": True}]) if self.checked else (0, [])

    def labels_since(self, version):
        return [(number, label) for number, label in [(1, "u 0.003 → 0.1")] if number > version]


class FakeHost:
    def __init__(self):
        self.run = FakeRun()

    def get(self, token):
        return self.run if token == "known" else None


def get(path, query="", headers=(), host=None):
    """What the routes answer: status, headers, body. A few lines of ASGI instead of a client library."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }
    host = host or FakeHost()
    for route in routes(lambda: host):
        match, found = route.matches(scope)
        if match.name == "FULL":
            return asyncio.run(_answer(route, scope | found))
    return 404, {}, b""


async def _answer(route, scope):
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    await route.handle(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


def pull(query, host=None):
    status, _, body = get("/moeviz/run/known", query, host=host)
    assert status == 200, body
    return wire.decode(body)


def test_a_new_browser_gets_everything():
    host = FakeHost()
    header, arrays = pull("epoch=-1&after=-1&version=-1", host)
    assert arrays["step"].ravel().tolist() == [0, 1, 2]
    assert header["marks"] == [[1, "u 0.003 → 0.1"]]
    assert header["recipe"] == asdict(host.run.recipe)
    assert header["knobs"] == asdict(host.run.knobs)
    assert (header["status"], header["playing"], header["version"]) == ("ready", True, 1)
    assert host.run.touched == 1


def test_an_up_to_date_browser_gets_only_what_is_new():
    header, arrays = pull("epoch=0&after=1&version=1")
    assert arrays["step"].ravel().tolist() == [2]
    assert header["marks"] == []
    assert "knobs" not in header


def test_identities_travel_only_when_they_are_newer():
    host = FakeHost()
    assert "truth" not in pull("epoch=0&after=2&version=1", host)[0]
    host.run.checked = True
    told = {"serial": 3, "identities": [{"name": "E1", "holds": True}]}
    assert pull("epoch=0&after=2&version=1&truth=2", host)[0]["truth"] == told
    assert "truth" not in pull("epoch=0&after=2&version=1&truth=3", host)[0]
    assert pull("epoch=5&after=2&version=1&truth=9", host)[0]["truth"] == told, "numbers of another beginning"


def test_another_beginning_is_sent_whole():
    header, arrays = pull("epoch=5&after=2&version=1")
    assert arrays["step"].ravel().tolist() == [0, 1, 2]
    assert "knobs" in header


def test_a_message_says_it_must_not_be_kept_nor_compressed_again():
    _, headers, _ = get("/moeviz/run/known")
    assert headers["cache-control"] == "no-store"
    assert headers["content-encoding"] == "identity"


def test_an_unknown_token_is_a_sentence():
    status, _, body = get("/moeviz/run/nobody")
    assert status == 404
    assert json.loads(body)["error"] == "This run was released because nobody was watching it."


@pytest.mark.parametrize("query", ["after=x", "epoch=1.5", "version=", "truth=yes", "after=-2", "after=" + "9" * 5000])
def test_a_bad_number_is_refused_in_a_sentence(query):
    status, _, body = get("/moeviz/run/known", query)
    assert status == 400
    sentence = json.loads(body)["error"]
    assert sentence.startswith(query.split("=")[0])
    assert len(sentence) < 200


@pytest.mark.parametrize("name", ["../wire.py", "..%2fwire.py", "nothing.js", "", "/etc/passwd", "__init__.py"])
def test_only_files_of_the_component_are_served(name):
    assert get(f"/moeviz/live/{name}")[0] == 404


@pytest.mark.parametrize(("name", "kind"), [("main.js", "text/javascript"), ("style.css", "text/css")])
def test_a_file_is_kept_for_ever_under_its_version(name, kind):
    status, headers, body = get(f"/moeviz/live/{name}", f"v={assets.VERSION}")
    assert status == 200
    assert headers["content-type"].startswith(kind)
    assert "immutable" in headers["cache-control"]
    assert get(f"/moeviz/live/{name}", "v=old")[1]["cache-control"] == "no-cache"
    zipped = get(f"/moeviz/live/{name}", headers=[("accept-encoding", "gzip")])
    assert gzip.decompress(zipped[2]) == body


def test_modules_import_each_other_under_the_same_version():
    for name, asset in assets.static().items():
        if name.endswith(".js"):
            imports = [line for line in asset.plain.decode().splitlines() if ' from "./' in line]
            assert all(f'.js?v={assets.VERSION}"' in line for line in imports), name


def test_plotly_is_served_gzipped_once_and_kept_for_ever():
    status, headers, body = get("/moeviz/plotly.min.js", f"v={assets.VERSION}", [("accept-encoding", "gzip, br")])
    assert status == 200
    assert headers["content-encoding"] == "gzip"
    assert "immutable" in headers["cache-control"]
    plain = gzip.decompress(body)
    assert b"plotly.js v" in plain[:200]
    assert len(body) < 0.4 * len(plain)
    assert assets.plotly() is assets.plotly()


def test_plotly_is_served_plain_to_whoever_cannot_unzip():
    _, headers, body = get("/moeviz/plotly.min.js")
    assert "content-encoding" not in headers
    assert b"plotly.js v" in body[:200]


def test_every_text_is_complete():
    for group in charts.texts().values():
        for name, text in group.items():
            for field in ("title", "meaning", "formula", "source"):
                assert text[field], (name, field)
