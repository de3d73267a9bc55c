"""Does the browser get exactly what the run recorded, and does a strange request get a plain answer?"""

import asyncio
import gzip
import json
import re
import types
import zlib
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeviz.config import Knobs, Recipe, check
from moeviz.live import assets, charts, visitor, wire
from moeviz.live import routes as live_routes
from moeviz.live.routes import routes
from moeviz.snapshot import History, record_dtype


def make_rows(num_layers, num_experts, count, dropping="nothing", seed=0):
    """Random rows as a `History` would return them. Experts drop `nothing`, or keep `as many` or `any number`."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(count, record_dtype(num_layers, num_experts))
    rows["step"] = np.cumsum(rng.integers(1, 5, count))
    rows["version"] = np.sort(rng.integers(0, 3, count))
    for name in ("task_loss", "fair_max_vio", "fan_out", "steps_per_second"):
        rows[name] = rng.random(rows[name].shape)
    rows["dead_experts"] = rng.integers(0, num_experts, rows["dead_experts"].shape)
    rows["eval_loss"] = np.where(np.arange(count) % 3 == 0, 0.5, np.nan)
    rows["bias"] = rng.normal(size=rows["bias"].shape) * 10.0 ** rng.integers(-4, 2)
    rows["load"] = rng.integers(0, 65536, rows["load"].shape)
    kept = {"nothing": rows["load"], "as many": 999, "any number": rng.integers(0, 65536, rows["load"].shape)}
    rows["kept_load"] = np.minimum(rows["load"], kept[dropping])
    for row in rows:
        for layer in range(num_layers):
            load, kept = row["load"][layer].tolist(), row["kept_load"][layer].tolist()
            mean = sum(load) / num_experts
            row["max_vio"][layer] = (max(load) - mean) / mean if mean else 0.0
            row["dropped_fraction"][layer] = 1 - sum(kept) / sum(load) if mean else 0.0
    return rows


def trained_rows(steps, **knobs):
    """Rows of a real run."""
    from moeviz.engine import Engine

    recipe = Recipe(device="cpu")
    engine, history = Engine(recipe, Knobs(**knobs)), History(1, recipe.num_experts, steps + 1)
    for _ in range(steps):
        history.append(engine.step(Knobs(**knobs)))
    return history.since(-1)[1]


def assert_same(arrays, rows):
    """What was decoded is what the rows say, as exactly as the wire promises."""
    largest = np.abs(rows["bias"]).max(initial=0.0)
    for name in set(arrays) & set(rows.dtype.names) - {"steps_per_second"}:
        sent = rows[name].reshape(len(rows), int(np.prod(rows[name].shape[1:])))
        if name == "bias":
            np.testing.assert_allclose(arrays[name], sent, rtol=1e-7, atol=largest / 32767)
        elif name in ("max_vio", "dropped_fraction"):  # worked out anew: to the rounding of float32
            np.testing.assert_allclose(arrays[name], sent, rtol=1.2e-7, atol=1e-9, err_msg=name)
        else:
            np.testing.assert_array_equal(arrays[name], sent, name)


DRAWN = {
    *("step", "version", "task_loss", "eval_loss", "fair_max_vio", "fair_max_vio_p95", "fair_min_load_p05"),
    *("steps_per_second", "max_vio", "fan_out", "dropped_fraction", "dead_experts", "bias", "load", "kept_load"),
}


@settings(deadline=None, max_examples=60)
@given(
    num_layers=st.integers(1, 3),
    num_experts=st.integers(2, 64),
    count=st.integers(0, 20),
    dropping=st.sampled_from(["nothing", "as many", "any number"]),
    seed=st.integers(0, 99),
)
def test_the_wire_returns_what_was_sent(num_layers, num_experts, count, dropping, seed):
    rows = make_rows(num_layers, num_experts, count, dropping, seed)
    header, arrays = wire.decode(wire.encode(rows, {"epoch": 7}))
    assert (header["epoch"], header["n"], header["layers"], header["experts"]) == (7, count, num_layers, num_experts)
    assert set(arrays) >= DRAWN
    assert_same(arrays, rows)
    assert (arrays["steps_per_second"] == rows["steps_per_second"][-1:]).all(), "the newest stands for all"


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"bias_rule": "sign", "u": 0.01},
        {"bias_rule": "quantile"},
        {"token_dropping": "expert", "capacity_factor": 0.75, "num_groups": 4, "groups_kept": 2},
        {"token_dropping": "expert", "protected_share": 0.5, "bias_rule": "sign_centred"},
        {"token_dropping": "device", "bias_rule": "proportional"},
        {"router": "expert_choice"},
    ],
)
def test_a_real_run_shows_the_numbers_of_the_server(knobs):
    rows = trained_rows(40, **knobs)
    assert_same(wire.decode(wire.encode(rows, {}))[1], rows)


def test_ordinary_words_of_a_header_are_left_out_and_put_back():
    usual = {"status": "ready", "message": "", "notice": "", "playing": True, "marks": []}
    message = wire.encode(make_rows(1, 4, 0), usual)
    assert len(message) < 40
    assert wire.decode(message)[0].items() >= usual.items()
    other = {"status": "failed", "message": "é", "notice": "n", "playing": False, "marks": [[1, "u"]]}
    assert wire.decode(wire.encode(make_rows(1, 4, 0), other))[0].items() >= other.items()


def test_a_message_of_another_format_is_refused():
    message = wire.encode(make_rows(1, 4, 1), {})
    with pytest.raises(ValueError, match="format 99"):
        wire.decode(bytes([99]) + message[1:])


def test_numbers_that_are_none_travel_as_they_are():
    rows = make_rows(1, 4, 3)
    rows["bias"][1, 0, 2], rows["task_loss"][2] = np.inf, np.nan
    header, arrays = wire.decode(wire.encode(rows, {}))
    assert "scale" not in header
    np.testing.assert_array_equal(arrays["bias"], rows["bias"].reshape(3, 4))
    np.testing.assert_array_equal(arrays["task_loss"].ravel(), rows["task_loss"])


def test_the_sign_rule_makes_small_numbers_of_biases():
    rows = trained_rows(60, bias_rule="sign", u=0.003)[40:]
    still = rows.copy()
    still["bias"] = 0
    both = [len(wire.deflate(wire.encode(these, {}))) for these in (rows, still)]
    assert both[0] - both[1] < 50, "where 16 biases stood, and one number that says how far each moved against its load"


def test_what_experts_drop_costs_one_limit():
    rows = trained_rows(60, token_dropping="expert", capacity_factor=1.0, protected_share=0.0)[40:]
    assert (rows["kept_load"] < rows["load"]).any()
    whole = rows.copy()
    whole["kept_load"] = whole["load"]
    dropping, without = (wire.encode(these, {}) for these in (rows, whole))
    assert len(dropping) == len(without), "a column that is all zeros is as short as one"
    _, arrays = wire.decode(dropping)
    assert (arrays["drop_limit"] == 128).all(), "1.0 * 1024 * 2 / 16"


def test_biases_that_begin_anywhere_and_move_alike_stay_exact():
    rows = make_rows(1, 16, 30)
    rng = np.random.default_rng(1)
    moves = np.vstack([rng.normal(size=16) / 10, rng.choice([-0.003, 0.003], (29, 16))])
    rows["bias"] = moves.cumsum(0)[:, None]
    assert_same(wire.decode(wire.encode(rows, {}))[1], rows)


# At two updates a second, 20 and 50 steps a second are 10 and 25 rows a message.
@pytest.mark.parametrize("dropping", ["none", "expert"])
@pytest.mark.parametrize(("count", "most"), [(10, 560), (25, 880)])
def test_a_second_of_training_is_two_kilobytes_at_most(count, most, dropping):
    host = FakeHost()
    rows = trained_rows(120, bias_rule="sign", token_dropping=dropping)
    host.run.records_since = lambda epoch, step, limit: (0, rows[-count:])
    asked = [("accept-encoding", "deflate"), ("cookie", f"{visitor.COOKIE}=mine")]
    _, headers, body = get("/moeviz/run/known", "epoch=0&after=1&version=1", asked, host)
    # What uvicorn adds: status line, date and server.
    added = "HTTP/1.1 200 OK..date: Sun, 22 Nov 2026 04:12:01 GMT..server: uvicorn...."

    assert len(body) + sum(len(f"{name}: {value}..") for name, value in headers.items()) + len(added) <= most


class FakeRun:
    """A run of three steps whose settings changed once."""

    recipe = Recipe(num_experts=4)
    knobs = Knobs()
    version = 1
    playing = trains = True
    owner = None

    def claim(self, visitor):
        self.owner = self.owner or visitor
        return self.owner == visitor

    def __init__(self):
        self.touched, self.checked, self.checks = 0, False, 3
        self.identities = [{"name": "E1", "sentence": "It is so.", "source": "ours", "holds": True, "numbers": "1 = 1"}]
        self.history = History(1, 4, 16)
        self.history._rows["step"][:3] = [0, 1, 2]
        self.history._rows["load"][:3] = 5
        self.history._rows["kept_load"][:3] = 5
        self.history._header["count"] = 3

    def touch(self):
        self.touched += 1

    def state(self):
        return types.SimpleNamespace(status="ready", message="", playing=self.playing, epoch=0, step=2)

    def set_knobs(self, knobs, version=None):
        if version not in (None, self.version):
            return False
        check(self.recipe, knobs)
        if knobs != self.knobs:
            self.knobs, self.version = knobs, self.version + 1
            if self.trains:
                self.history._rows["version"][2] = self.version
        return True

    def records_since(self, epoch, step, limit=1 << 30):
        return self.history.since(step if epoch == self.history.epoch else -1, limit)

    def truth(self):
        return (self.checks, self.identities) if self.checked else (0, [])

    def labels_since(self, version):
        return [(number, label) for number, label in [(1, "u 0.003 → 0.1")] if number > version]


class FakeHost:
    def __init__(self, run=None):
        self.run = run or FakeRun()

    def get(self, token):
        return self.run if token == "known" else None

    def is_near(self, token):
        return token == "known"


def get(path, query="", headers=(), host=None, method="GET", body=b""):
    """What the routes answer: status, headers, body. A few lines of ASGI instead of a client library."""
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }
    host = host or FakeHost()
    for route in routes(lambda: host):
        match, found = route.matches(scope)
        if match.name == "FULL":
            return asyncio.run(_answer(route, scope | found, body))
    return 404, {}, b""


async def _answer(route, scope, body):
    sent = []
    parts = [body[at : at + 1000] for at in range(0, len(body), 1000)] or [b""]

    async def receive():
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

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
    whole = pull("epoch=0&after=2&version=1&truth=2", host)[0]["truth"]
    assert whole == {"serial": 3, "told": whole["told"], "identities": host.run.identities}
    assert "truth" not in pull("epoch=0&after=2&version=1&truth=3", host)[0]
    told = f"told={whole['told']}"
    assert pull(f"epoch=5&after=2&version=1&truth=9&{told}", host)[0]["truth"] == whole, "those of another beginning"


def test_identities_that_say_the_same_send_their_numbers_to_those_who_want_them():
    host = FakeHost()
    host.run.checked = True
    query = f"epoch=0&after=2&version=1&truth=3&told={pull('', host)[0]['truth']['told']}&numbers="
    host.run.checks, host.run.identities[0]["numbers"] = 4, "2 = 2"
    assert pull(query + "0", host)[0]["truth"] == {"serial": 4}
    assert pull(query + "1", host)[0]["truth"] == {"serial": 4, "numbers": ["2 = 2"]}
    host.run.identities[0]["holds"] = False
    assert pull(query + "0", host)[0]["truth"]["identities"] == host.run.identities, "a verdict is always news"


def test_another_beginning_is_sent_whole():
    header, arrays = pull("epoch=5&after=2&version=1")
    assert arrays["step"].ravel().tolist() == [0, 1, 2]
    assert "knobs" in header


def test_a_message_says_it_must_not_be_kept_nor_compressed_again():
    _, headers, _ = get("/moeviz/run/known")
    assert headers["cache-control"] == "no-store"
    assert headers["content-encoding"] == "identity"


def test_a_long_message_is_deflated_for_whoever_can_read_it():
    _, headers, body = get("/moeviz/run/known", headers=[("accept-encoding", "gzip, deflate, br")])
    assert headers["content-encoding"] == "deflate"
    assert int(headers["content-length"]) == len(body)
    assert zlib.decompress(body) == get("/moeviz/run/known")[2]
    _, headers, _ = get("/moeviz/run/known", "epoch=0&after=2&version=1", [("accept-encoding", "deflate")])
    assert headers["content-encoding"] == "identity", "a short one is not"


def test_an_unknown_token_is_a_sentence():
    status, _, body = get("/moeviz/run/nobody")
    assert status == 404
    assert json.loads(body)["error"] == "This run was released because nobody was watching it."


def turn(body, host=None, headers=(), kind="application/json"):
    """What the routes answer to a change of knobs: status and the sentence, or header and columns."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, answer = get("/moeviz/run/known/knobs", "", [("content-type", kind), *headers], host, "POST", body)
    return status, wire.decode(answer) if status == 200 else json.loads(answer or '{"error": ""}')["error"]


def test_a_slider_turns_a_knob_and_gets_the_step_it_made():
    host = FakeHost()
    status, (header, arrays) = turn({"version": 1, "epoch": 0, "after": 1, "knobs": {"u": 0.01}}, host)
    assert status == 200
    assert host.run.knobs == Knobs(u=0.01)
    assert (header["version"], header["knobs"]["u"]) == (2, 0.01)
    assert arrays["version"].ravel().tolist() == [2]


@pytest.mark.parametrize(("playing", "waited"), [(True, live_routes.PATIENCE), (False, 0.0)])
def test_an_answer_waits_for_a_step_but_not_long_and_not_for_none(playing, waited, monkeypatch):
    now = types.SimpleNamespace(seconds=0.0)

    def sleep(seconds):
        now.seconds += seconds

    monkeypatch.setattr(live_routes, "time", types.SimpleNamespace(monotonic=lambda: now.seconds, sleep=sleep))
    host = FakeHost()
    host.run.trains, host.run.playing = False, playing
    assert turn({"version": 1, "knobs": {"u": 0.01}}, host)[0] == 200
    assert waited <= now.seconds <= 1.1 * waited


def test_a_late_change_is_refused_and_changes_nothing():
    host = FakeHost()
    assert turn({"version": 0, "knobs": {"u": 0.01}}, host)[0] == 204
    assert turn({"knobs": {"u": 0.01}}, host)[0] == 204, "no version is none that is in force"
    assert host.run.knobs == Knobs()


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"version": 1, "knobs": {"u": 7.0}}, 422, "u=7"),
        ({"version": 1, "knobs": {"u": float("nan")}}, 422, "u=nan"),
        ({"version": 1, "knobs": {"u": float("inf")}}, 422, "u=inf"),
        ({"version": 1, "knobs": {"u": "0.01"}}, 422, 'u="0.01" is not of the kind of 0.003'),
        ({"version": 1, "knobs": {"u": None}}, 422, "u=null is not of the kind"),
        ({"version": 1, "knobs": {"u": True}}, 422, "u=true is not of the kind"),
        ({"version": 1, "knobs": {"u": [0.01]}}, 422, "is not of the kind"),
        ({"version": 1, "knobs": {"u": 10**400}}, 422, "is not of the kind"),
        ({"version": 1, "knobs": {"top_k": 2.5}}, 422, "top_k=2.5 is not of the kind of 2"),
        ({"version": 1, "knobs": {"top_k": 9}}, 422, "top_k=9"),  # more than there are experts
        ({"version": 1, "knobs": {"num_experts": 8}}, 422, "num_experts is not a knob"),
        ({"version": 1, "knobs": {"__class__": 8}}, 422, "__class__ is not a knob"),
        ({"version": 1, "knobs": {}}, 400, "Say which knobs to turn"),
        ({"version": 1, "knobs": [1]}, 400, "Say which knobs to turn"),
        ({"version": 1}, 400, "Say which knobs to turn"),
        ({"version": "x", "knobs": {"u": 0.01}}, 400, "version=x is not a whole number"),
        ({"version": 1, "after": [3], "knobs": {"u": 0.01}}, 400, "after=[3] is not a whole number"),
        ([], 400, "This is no JSON object"),
        (b"", 400, "This is no JSON."),
        (b"\xff\xfe", 400, "This is no JSON."),
        (b"[" * 4000, 400, "This is no JSON."),
        (b"9" * 5000, 413, "That is too long"),
        (b'{"knobs": ' + b" " * 100_000 + b"}", 413, "That is too long"),
    ],
)
def test_a_strange_change_is_refused_in_a_sentence(body, status, sentence):
    host = FakeHost()
    answer = turn(body, host)
    assert answer[0] == status, answer
    assert sentence in answer[1]
    assert len(answer[1]) < 900
    assert host.run.knobs == Knobs()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_change_must_be_json_by_its_type(kind):
    assert turn({"version": 1, "knobs": {"u": 0.01}}, kind=kind)[0] == 415


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin", "origin": "https://outside.example", "host": "inside:8501"}, 200),
        ({"origin": "http://here:8501", "host": "here:8501"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://there", "host": "here:8501"}, 403),
        ({"origin": "null", "host": "here:8501"}, 403),
    ],
)
def test_another_sites_page_changes_nothing(headers, status):
    host = FakeHost()
    assert turn({"version": 1, "knobs": {"u": 0.01}}, host, list(headers.items()))[0] == status
    assert (host.run.knobs == Knobs()) == (status == 403)


def test_a_change_to_an_unknown_run_is_a_sentence():
    body = b'{"version": 1, "knobs": {"u": 0.01}}'
    answer = get("/moeviz/run/nobody/knobs", "", [("content-type", "application/json")], None, "POST", body)
    assert answer[0] == 404
    assert "released" in json.loads(answer[2])["error"]


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


@pytest.mark.parametrize("entry", assets.ENTRIES)
def test_a_page_begins_with_one_file_that_has_all_it_imports(entry):
    served = assets.static()[entry].plain.decode()
    assert not re.search(r"^\s*import\b", served, re.MULTILINE)
    assert served.rstrip().splitlines()[-1] == f'export const {{ render, release }} = modules["{entry}"]'
    for name in assets.modules(entry):
        assert served.count(f'modules["{name}"] ??= ') == 1
    other = next(name for name in assets.ENTRIES if name != entry)
    assert f'modules["{other}"] ??=' not in served


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


def test_a_browser_is_given_a_name_and_the_run_it_first_asks_for():
    host = FakeHost()
    status, headers, _ = get("/moeviz/run/known", host=host)
    assert status == 200
    assert host.run.owner is None, "two tabs opened at once are given two names, and keep one"
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    mine, other = ("cookie", cookie.split(";")[0]), ("cookie", f"{visitor.COOKIE}=another")
    status, headers, _ = get("/moeviz/run/known", headers=[mine], host=host)
    assert status == 200
    assert "set-cookie" not in headers
    for stranger in ([other], [], [("cookie", f"{visitor.COOKIE}={'x' * 5000}")]):
        touched = host.run.touched
        status, _, body = get("/moeviz/run/known", headers=stranger, host=host)
        assert status == 403
        assert b"another browser" in body
        assert host.run.touched == touched, "looking in keeps no run awake"
    status, _, _ = get("/moeviz/run/known", headers=[mine], host=host)
    assert status == 200


def test_nobody_turns_the_knobs_of_anothers_run():
    host = FakeHost()
    host.run.owner = "mine"
    body = b'{"version": 1, "knobs": {"u": 0.01}}'
    headers = [("content-type", "application/json"), ("cookie", f"{visitor.COOKIE}=another")]
    status, _, _ = get("/moeviz/run/known/knobs", headers=headers, host=host, method="POST", body=body)
    assert (status, host.run.version) == (403, 1)
    headers[1] = ("cookie", f"{visitor.COOKIE}=mine")
    status, _, _ = get("/moeviz/run/known/knobs", headers=headers, host=host, method="POST", body=body)
    assert (status, host.run.version) == (200, 2)
