"""What charts in a real browser and their server say to each other: steps, moves of a slider, silence, a restart."""

from __future__ import annotations

import base64
import urllib.request
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from playwright.sync_api import expect

from moeviz.live import assets, wire
from tests.browsing import (
    FEED,
    READY,
    RESTARTED,
    SECOND,
    button,
    drag,
    feed,
    free_port,
    look,
    run,
    serving,
    settle,
    until,
)
from tests.test_live import make_rows, trained_rows

pytestmark = pytest.mark.browser


def decoded_in_the_browser(page, message):
    """What the page's own decoder makes of a message."""
    return page.evaluate(
        """async ([address, text]) => {
            const { decode } = await import(address)
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))
            const { header, columns } = decode(bytes.buffer)
            return { header, columns: Object.fromEntries(Object.entries(columns).map(([k, v]) => [k, [...v]])) }
        }""",
        [f"/moeviz/live/wire.js?v={assets.VERSION}", base64.b64encode(message).decode()],
    )


def messages():
    """Name and message for everything odd that can travel."""
    yield "no rows", make_rows(1, 4, 0)
    yield "one row", make_rows(1, 4, 1)
    yield "dropping, layers, gaps, held-out losses and settings that change", make_rows(2, 5, 40, "as many")
    yield "drops that follow no rule", make_rows(2, 5, 40, "any number")
    yield "a run whose experts drop and whose biases move", trained_rows(60, token_dropping="expert", bias_rule="sign")
    yield "many experts", make_rows(2, 256, 12)
    flat = make_rows(1, 4, 6)
    flat["bias"], flat["load"], flat["kept_load"] = 0, 0, 0
    flat["step"] = np.arange(6) + 999_995
    flat["max_vio"] = flat["dropped_fraction"] = 0
    yield "no bias, no load and a late step", flat
    strange = make_rows(1, 4, 3)
    strange["bias"][1, 0, 2], strange["task_loss"], strange["eval_loss"] = np.inf, np.nan, np.nan
    yield "numbers that are none", strange
    gap = make_rows(1, 4, 2)
    gap["step"] = [0, 1_000_000]
    yield "a wide gap", gap


def test_the_browser_reads_a_message_as_python_does(new_page):
    page = new_page()
    for name, rows in messages():
        message = wire.encode(rows, {"epoch": 1, "version": 3, "message": "é", "marks": [[3, "u"]]})
        header, arrays = wire.decode(message)
        seen = decoded_in_the_browser(page, message)
        assert seen["header"] == header, name
        assert set(seen["columns"]) == set(arrays), name
        for column, values in arrays.items():
            read = np.array(seen["columns"][column], float).astype(values.dtype)
            np.testing.assert_array_equal(read, values.ravel(), f"{name}: {column}")


def test_the_server_deflates_a_message_once(new_page, address):
    page = new_page()
    until(page, f"{READY} && m.store.count > 0")
    token = look(page, "token")
    mine = {"Cookie": "; ".join(f"{one['name']}={one['value']}" for one in page.context.cookies())}
    headers = {"Accept-Encoding": "gzip, deflate, br"} | mine
    asked = urllib.request.Request(f"{address}moeviz/run/{token}", headers=headers)
    with urllib.request.urlopen(asked) as answer:
        assert answer.headers.get_all("Content-Encoding") == ["deflate"]
        assert wire.decode(zlib.decompress(answer.read()))[0]["n"] >= 1
    asked = urllib.request.Request(f"{address}moeviz/run/{token}", headers={"Accept-Encoding": "gzip"} | mine)
    with urllib.request.urlopen(asked) as answer:
        assert answer.headers.get_all("Content-Encoding") == ["identity"]
        assert wire.decode(answer.read())[0]["n"] >= 1


def write_count(page):
    """Counts from now on what sliders write to the run: a list of statuses that fills up."""
    statuses = []
    page.on("response", lambda answer: statuses.append(answer.status) if answer.url.endswith("/knobs") else None)
    return statuses


def labels(page):
    return [mark["label"] for mark in look(page, "marks")]


def drag_slider(page, share):
    """Move the slider u with the mouse to a share of its width."""
    track = page.locator(".st-key-u [role=group]").bounding_box()
    thumb = page.locator(".st-key-u [data-testid=stSliderThumbValue]").locator("..").bounding_box()
    y = thumb["y"] + thumb["height"] / 2
    drag(page, (thumb["x"] + thumb["width"] / 2, y), (track["x"] + share * track["width"], y))


class Script:
    """The page's script, of which a test decides when it hears what the visitor did."""

    def __init__(self, page):
        self.held = None
        page.route_web_socket("**/_stcore/stream", self._connect)

    def _connect(self, browser):
        self.server = browser.connect_to_server()
        browser.on_message(self._pass_on)

    def _pass_on(self, message):
        if self.held is None:
            self.server.send(message)
        else:
            self.held.append(message)

    @contextmanager
    def waits(self):
        self.held = []
        yield
        held, self.held = self.held, None
        assert held, "the script is told, too"
        for message in held:
            self.server.send(message)


def test_a_slider_writes_to_the_run_and_leaves_one_mark_for_each_move(watch, address):
    """The script brings the same value, and a write that comes after it is not needed: here the script is late."""
    page = watch(address)
    script = Script(page)
    page.goto(address + "?preset=loss_free")
    until(page, READY)
    run(page, 10)
    settle(page)
    written = write_count(page)
    slider = page.get_by_role("slider", name="Bias update speed u")
    slider.focus()
    with script.waits():
        page.keyboard.press("ArrowRight")
        until(page, "m.writes === 1 && m.marks.length === 1")
    settle(page)
    with script.waits():
        drag_slider(page, 1.0)
        until(page, "m.writes === 2 && m.marks.length === 2")
    settle(page)
    assert written == [200, 200]
    assert labels(page) == ["u 0.003 → 0.005", "u 0.005 → 0.1"], "the script brought nothing new"
    assert slider.get_attribute("aria-valuetext") == "0.1"
    assert "u=0.1" in page.evaluate("location.search")
    assert look(page, "store.knobs.u") == 0.1


def test_quick_keys_end_at_the_last_value(new_page):
    page = new_page("?bias_rule=sign&top_k=4&u=0.003")  # no preset, before and after
    run(page, 10)
    settle(page)
    page.get_by_role("slider", name="Bias update speed u").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    until(page, "m.store.knobs.u === 0.05")
    settle(page)
    assert labels(page)[-1].endswith("→ 0.05")
    assert look(page, "store.knobs.u") == 0.05
    stops = [float(label.split()[-1]) for label in labels(page)]
    assert stops == sorted(set(stops)), "no value came back after a newer one"


@pytest.mark.parametrize("refusal", ["204", "409", "lost"])
def test_a_write_that_fails_is_made_good_by_the_page(watch, address, refusal):
    page = watch(address, forgiven="409|ERR_FAILED")
    page.goto(address + "?preset=loss_free")
    until(page, "m && m.drawn > 0")
    run(page, 10)
    settle(page)
    refuse = {
        "204": lambda route: route.fulfill(status=204),
        "409": lambda route: route.fulfill(status=409, body="{}"),
        "lost": lambda route: route.abort(),
    }
    page.route("**/knobs", refuse[refusal])
    page.get_by_role("slider", name="Bias update speed u").focus()
    page.keyboard.press("ArrowRight")
    until(page, "m.marks.length === 1 && m.store.knobs.u === 0.005")
    settle(page)
    assert labels(page) == ["u 0.003 → 0.005"]
    assert look(page, "writes") == 0


def test_a_million_steps_take_the_memory_of_ten_thousand_and_keep_spikes(new_page):
    page = new_page()
    seen = page.evaluate(
        """async (address) => {
            const { Store } = await import(address)
            const store = new Store(1, 16)
            const feed = """
        + FEED
        + """
            const look = () => ({
                count: store.count,
                bytes: [...store.columns.values()].reduce((sum, { data }) => sum + data.byteLength, 0),
                highest: Math.max(...store.max_vio.subarray(0, store.count)),
                lowest: Math.min(...store.task_loss.subarray(0, store.count)),
                changed: [...store.version.subarray(0, store.count)].findIndex((version) => version === 1),
                steps: [...store.step.subarray(0, store.count)],
                heldOut: [...store.eval_loss.subarray(0, store.count)].filter(Number.isFinite).length,
            })
            feed(store, 0, 10000)
            const before = look()
            for (let from = 10000; from < 1000000; from += 1000) feed(store, from, from + 1000)
            return [before, look()]
        }""",
        f"/moeviz/live/store.js?v={assets.VERSION}",
    )
    for end, what in zip((10_000, 1_000_000), seen, strict=True):
        steps = what["steps"]
        assert steps == sorted(set(steps))
        assert (steps[0], steps[-1]) == (0, end - 1)
        assert what["count"] <= 4000
        assert what["highest"] == 50, "a spike stays"
        assert what["lowest"] == 0.25, "a dip stays"
        assert steps[what["changed"]] == 1777, "the first step under changed settings stays"
        assert what["heldOut"] > 100
        assert steps[-1000:] == list(range(end - 1000, end)), "the last 1000 are whole"
        widest = max(np.diff(steps)[: len(steps) - 1000])
        assert widest <= end / 100, "the picture is as fine at its beginning as later on"
    assert seen[0]["bytes"] == seen[1]["bytes"]


def step_titles(page):
    return page.evaluate(
        "[...document.querySelectorAll('.moeviz .xtitle')].map(t => t.textContent).filter(t => t.startsWith('step'))"
    )


def test_charts_say_when_steps_are_missing_and_only_then(new_page):
    page = new_page()
    until(page, "m.status === 'ready'")
    feed(page, 1, 6000)
    page.get_by_role("button", name="last 1000").click()
    until(page, "m.view.window === '1000' && !m.recorded")
    page.wait_for_timeout(300)
    assert set(step_titles(page)) == {"step"}
    page.get_by_role("button", name="all steps").click()
    page.wait_for_function("document.querySelector('.moeviz').textContent.includes('older ones thinned')")
    assert set(step_titles(page)) == {"step (older ones thinned, extremes kept)"}
    for title in page.locator(".moeviz .xtitle").all():
        card = title.locator("xpath=ancestor::article").bounding_box()
        box = title.bounding_box()
        assert card["x"] <= box["x"], "it fits"
        assert box["x"] + box["width"] <= card["x"] + card["width"], "it fits"


def pulls(page):
    """When the browser asked the run, in ms, since the last call of `forget_pulls`."""
    return page.evaluate(
        "performance.getEntriesByType('resource').filter(e => e.name.includes('/moeviz/run/')).map(e => e.startTime)"
    )


def forget_pulls(page):
    page.evaluate("performance.clearResourceTimings()")


def hide(page, hidden):
    page.evaluate(
        """(hidden) => {
            Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden })
            document.dispatchEvent(new Event("visibilitychange"))
        }""",
        hidden,
    )


def test_a_hidden_tab_asks_for_nothing_and_catches_up_when_seen(new_page):
    page = new_page()
    run(page, 10)
    hide(page, True)
    page.wait_for_timeout(1000)  # an answer may still be on its way
    forget_pulls(page)
    step = look(page, "step")
    page.wait_for_timeout(2000)
    assert pulls(page) == []
    assert look(page, "step") == step
    hide(page, False)
    until(page, f"m.step > {step} + 10")


def test_slow_drawing_lowers_the_rate(new_page):
    page = new_page()
    page.evaluate(
        """() => {
            const { clearRect } = CanvasRenderingContext2D.prototype
            CanvasRenderingContext2D.prototype.clearRect = function (...box) {
                for (const end = performance.now() + 80; performance.now() < end; );
                return clearRect.apply(this, box)
            }
        }"""
    )
    button(page, "Run").click()
    until(page, "m.step > 10 && m.playing && m.drawMs > 400")
    forget_pulls(page)
    page.wait_for_timeout(6000)
    pauses = np.diff(pulls(page))
    assert len(pauses) > 1
    assert np.median(pauses) > 780, "five charts take 400 ms a drawing, and the browser rests as long"


def notice(page):
    return page.locator(".moeviz .notice")


def test_silence_is_said_after_ten_seconds_and_forgotten(new_page):
    page = new_page()
    until(page, "m.status === 'ready'")
    page.route("**/moeviz/run/**", lambda route: None)
    page.wait_for_timeout(5000)
    expect(notice(page)).to_be_hidden()
    expect(notice(page)).to_have_text("The server does not answer; trying again.", timeout=20 * SECOND)
    page.unroute_all(behavior="ignoreErrors")
    expect(notice(page)).to_be_hidden(timeout=20 * SECOND)
    button(page, "Step").click()
    until(page, "m.step === 1")


@pytest.mark.parametrize("status", [403, 404])
def test_a_run_that_is_refused_says_so_in_the_servers_words_and_may_come_back(watch, address, status):
    page = watch(address, forgiven=f"status of {status}")
    page.goto(address)
    until(page, READY)
    page.route("**/moeviz/run/**", lambda route: route.fulfill(status=status, json={"error": "Not for you."}))
    expect(notice(page)).to_have_text("Not for you.", timeout=20 * SECOND)
    page.unroute_all(behavior="ignoreErrors")
    expect(notice(page)).to_be_hidden(timeout=20 * SECOND)
    button(page, "Step").click()
    until(page, "m.step === 1")


def test_what_the_server_has_to_say_is_shown_calmly(new_page):
    page = new_page()
    until(page, "m.status === 'ready'")
    state = {"epoch": look(page, "epoch"), "version": 0, "playing": False}
    page.route("**/moeviz/run/**", lambda route: route.fulfill(body=wire.encode(make_rows(1, 16, 0), state)))
    for said, sentence in [
        ({"notice": "It went on from step 120."}, "It went on from step 120."),
        ({"status": "waiting", "message": "2 runs are ahead of yours."}, "2 runs are ahead of yours."),
    ]:
        state |= said
        expect(notice(page)).to_have_text(sentence)
        assert "serious" not in notice(page).get_attribute("class")


def test_a_page_outlives_a_restart_of_its_server(watch):
    port = free_port()
    page = watch(f"http://127.0.0.1:{port}/", forgiven=RESTARTED)
    with serving(port=port) as address:
        page.goto(address + "?bias_rule=sign&u=0.01")
        until(page, READY)
        run(page, 10)
        token = look(page, "token")
    expect(notice(page)).to_have_text("The server does not answer; trying again.")
    with serving(port=port):
        until(page, f"{READY} && m.token !== {token!r} && m.store.knobs && m.store.knobs.u === 0.01")
        expect(notice(page)).to_be_hidden()
        run(page, 10)
        page.context.close()
