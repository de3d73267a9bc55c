"""What charts in a real browser and their server say to each other: steps, moves of a slider, silence, a restart."""

from __future__ import annotations

import os
import urllib.request
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from playwright.sync_api import expect

from moeviz.live import wire
from moeviz.live.routes import NOT_YOURS, RELEASED
from tests.browsing import (
    READY,
    RESTARTED,
    drag,
    free_port,
    look,
    run,
    serving,
    settle,
    until,
)
from tests.charts_alone import RUNS, mount, new_run, train_to

pytestmark = pytest.mark.browser


def test_the_server_deflates_a_message_once(alone):
    address = f"{alone}moeviz/run/{new_run(step=10).token}"
    asked = urllib.request.Request(address, headers={"Accept-Encoding": "gzip, deflate, br"})
    with urllib.request.urlopen(asked) as answer:
        assert answer.headers.get_all("Content-Encoding") == ["deflate"]
        assert wire.decode(zlib.decompress(answer.read()))[0]["n"] == 11
    asked = urllib.request.Request(address, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(asked) as answer:
        assert answer.headers.get_all("Content-Encoding") == ["identity"]
        assert wire.decode(answer.read())[0]["n"] == 11


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
    page = watch(address, own=True)
    script = Script(page)
    page.goto(address + "?preset=loss_free&speed=1/s")
    until(page, READY)
    run(page, 0)
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

    # Quick keys: the script runs for the first ones while the next ones come.
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    until(page, "m.store.knobs.u === 0.005")
    settle(page)
    assert labels(page)[-1].endswith("→ 0.005")
    assert look(page, "store.knobs.u") == 0.005
    stops = [float(label.split()[-1]) for label in labels(page)[1:]]
    assert stops == sorted(set(stops), reverse=True), "no value came back after a newer one"


def test_a_write_that_fails_is_made_good_by_the_page(watch, address):
    page = watch(address, own=True)
    page.add_init_script(REFUSE)
    page.goto(address + "?preset=loss_free&speed=1/s")
    until(page, READY)
    run(page, 0)
    settle(page)
    refusals = [
        ("u 0.003 → 0.005", "new Response(null, { status: 204 })"),
        ("u 0.005 → 0.01", 'new Response("{}", { status: 409 })'),
        ("u 0.01 → 0.02", 'Promise.reject(new TypeError("Failed to fetch"))'),
    ]
    for number, (label, refusal) in enumerate(refusals, start=1):
        page.evaluate(f"() => {{ window.refuse = async () => {refusal} }}")
        page.get_by_role("slider", name="Bias update speed u").focus()
        page.keyboard.press("ArrowRight")
        until(page, f"window.refused === {number} && m.marks.length === {number}")
        settle(page)
        assert labels(page)[-1] == label
        assert look(page, "store.knobs.u") == float(label.split()[-1])
    assert len(labels(page)) == 3
    assert look(page, "writes") == 0


# What sliders write to the run does not reach it, once there is a refusal.
REFUSE = """
    const { fetch } = window
    window.refused = 0
    window.fetch = (address, ...asked) => {
        if (!window.refuse || !String(address).endsWith("/knobs")) return fetch(address, ...asked)
        window.refused += 1
        return window.refuse()
    }
"""


def test_slow_drawing_lowers_the_rate(watch, alone):
    """Of all charts together, on a clock that goes on with what they draw, and otherwise when it is told."""
    training = new_run(step=10)
    training.playing = True
    page = watch(alone, own=True)
    page.clock.install()
    page.goto(alone)
    mount(page, training)
    page.clock.pause_at("2100-01-01")
    page.evaluate(
        """() => {
            const { fetch } = window
            const { clearRect } = CanvasRenderingContext2D.prototype
            const now = performance.now.bind(performance)
            let spent = 0
            performance.now = () => now() + spent
            CanvasRenderingContext2D.prototype.clearRect = function (...box) {
                spent += 80
                return clearRect.apply(this, box)
            }
            window.asked = []
            window.fetch = (...request) => {
                asked.push({ step: window.__moeviz.step, at: performance.now() })
                return fetch(...request)
            }
        }"""
    )
    for step in range(11, 16):
        training.train_to(step)
        while look(page, "step") < step:
            page.clock.run_for(100)
    assert look(page, "drawMs") >= 400
    asked = page.evaluate("asked.filter(({ step }) => step > 10).map(({ at }) => at)")
    assert len(asked) >= 3
    assert min(np.diff(asked)) > 780, "five charts take 400 ms a drawing, and the browser rests as long"


def notice(page):
    return page.locator(".moeviz .notice")


def test_a_run_that_is_refused_says_so_in_the_servers_words_and_may_come_back(watch, alone):
    training = new_run()
    page = watch(alone, forgiven="status of 40[34]")
    page.goto(alone)
    mount(page, training)
    training.owner = "somebody else"
    expect(notice(page)).to_have_text(NOT_YOURS)
    training.owner = None
    expect(notice(page)).to_be_hidden()
    del RUNS[training.token]
    expect(notice(page)).to_have_text(RELEASED)
    page.wait_for_function("told.some(([name, { status, message }]) => status === 'released' && message)")
    RUNS[training.token] = training
    expect(notice(page)).to_be_hidden()
    train_to(page, training, 1)


def test_what_the_server_has_to_say_is_shown_calmly(show):
    training = new_run()
    page = show(training)
    training.notice = "It went on from step 120."
    expect(notice(page)).to_have_text("It went on from step 120.")
    assert "serious" not in notice(page).get_attribute("class")
    training.status, training.message = "waiting", "2 runs are ahead of yours."
    expect(notice(page)).to_have_text("2 runs are ahead of yours.")
    assert "serious" not in notice(page).get_attribute("class")


def test_a_page_outlives_a_restart_of_its_server(watch):
    port, one_worker = free_port(), os.environ | {"MOEVIZ_WORKERS": "1"}
    page = watch(f"http://127.0.0.1:{port}/", forgiven=RESTARTED)
    with serving(port=port, env=one_worker) as address:
        page.goto(address + "?bias_rule=sign&u=0.01")
        until(page, READY)
        run(page, 10)
        token = look(page, "token")
    expect(notice(page)).to_have_text("The server does not answer; trying again.")
    with serving(port=port, env=one_worker):
        until(page, f"{READY} && m.token !== {token!r} && m.store.knobs && m.store.knobs.u === 0.01")
        expect(notice(page)).to_be_hidden()
        run(page, 10)
        page.context.close()
