"""The real page in a real browser, started as the README says."""

from __future__ import annotations

import base64
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright

from moeviz.live import assets, wire
from moeviz.presets import PRESETS
from tests.install_chromium import find
from tests.test_live import make_rows

ROOT = Path(__file__).parents[1]
ARTIFACTS = ROOT / "test-artifacts"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SECOND = 1000
pytestmark = pytest.mark.browser


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(port=None, app="app.py"):
    """A server of our own, started with the README's command; gives its address."""
    port = port or free_port()
    command = [sys.executable, "-m", "streamlit", "run", app, f"--server.port={port}"]
    server = subprocess.Popen(
        [*command, "--server.address=127.0.0.1"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/_stcore/health")
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        printed = server.communicate(timeout=30)[0].decode()
    assert "Traceback" not in printed, printed
    assert f"http://127.0.0.1:{port}" in printed, "the address is printed"


@pytest.fixture(scope="module")
def address():
    with serving() as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    path = find()
    if path is None:
        reason = "no Chromium is installed and none could be; `python -m tests.install_chromium` says why"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser, address, request):
    """Opens pages, and fails the test if one logs an error or asks another host for anything."""
    faults, pages = [], []

    def open_page(query="", **options):
        context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        page = context.new_page()
        page.set_default_timeout(60 * SECOND)
        page.on("pageerror", lambda error: faults.append(f"error on the page: {error}"))
        page.on("console", lambda message: faults.append(message.text) if _is_fault(message) else None)
        page.on(
            "request",
            lambda asked: faults.append(f"asked {asked.url}") if _elsewhere(asked.url, address) else None,
        )
        page.goto(address + query)
        page.wait_for_function("window.__moeviz && window.__moeviz.drawn > 0 && window.__moeviz.complete")
        pages.append(page)
        return page

    yield open_page
    for number, page in enumerate(pages):
        ARTIFACTS.mkdir(exist_ok=True)
        page.screenshot(path=ARTIFACTS / f"{request.node.name}-{number}.png")
        page.context.close()
    assert not faults


def _is_fault(message):
    # Opened at another page than the first, Streamlit looks for its server below that page's address first.
    return message.type == "error" and not ("404" in message.text and "/_stcore/" in message.location["url"])


def _elsewhere(url, address):
    return url.startswith(("http", "ws")) and address.split("//")[1] not in url


def _wait_for(url, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.1)


def look(page, expression):
    return page.evaluate(f"window.__moeviz.{expression}")


def until(page, condition):
    """Wait for a JavaScript condition on `m`, what the live charts know."""
    page.wait_for_function(f"(() => {{ const m = window.__moeviz; return {condition} }})()")


def button(page, name):
    return page.get_by_role("button", name=re.compile(f"^{name}\\b")).first


def choose(page, label, option):
    page.get_by_role("combobox", name=label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()
    expect(page.get_by_role("combobox", name=label, exact=True)).to_have_value(option)


def bars(page):
    """The loads as the bar chart draws them."""
    return look(page, "bars.join()")


def max_vio(page):
    """Mean of the last 20 steps."""
    return look(page, "store.max_vio.slice(0, window.__moeviz.store.count).slice(-20).reduce((a, b) => a + b) / 20")


def test_collapse_and_recovery_by_hand(new_page):
    page = new_page()
    expect(page.get_by_text("Recorded start of the preset")).to_be_visible()
    before = bars(page)
    button(page, "Run").click()
    until(page, "m.step > 100 && m.playing")
    expect(page.get_by_text("Recorded start of the preset")).to_have_count(0)
    assert bars(page) != before
    assert max_vio(page) > 5, "left alone, routing collapses"

    choose(page, "Balancing", "Loss-free bias")
    until(page, "m.marks.some(mark => mark.label === 'balancing none → loss_free')")
    changed_at = look(page, "marks[0].step")
    until(page, f"m.step > {changed_at} + 250")
    assert max_vio(page) < 3, "the bias brings balance back"

    page.get_by_role("slider", name="Bias update speed u").focus()
    page.keyboard.press("End")
    until(page, "m.marks.some(mark => mark.label === 'u 0.003 → 0.1')")

    choose(page, "Gating", "softmax")
    until(page, "m.marks.some(mark => mark.label === 'gating sigmoid → softmax')")
    assert "gating=softmax" in page.evaluate("location.search")

    button(page, "Pause").click()
    until(page, "!m.playing")
    button(page, "Reset").click()
    until(page, "m.step === 0 && m.marks.length === 0")
    assert look(page, "lastError") == ""


def painted_heights(page):
    """Height of each expert's bar in pixels, counted on the canvas by the colours of bars, and the top of the axis."""
    return page.evaluate(
        """() => {
            const colors = [[159, 191, 223], [31, 85, 150]]
            const plot = document.querySelector("[data-chart=load] .plot")
            const canvas = plot.querySelector("canvas")
            const { width, height, data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height)
            const of = (x, y) => data.slice(4 * (y * width + x), 4 * (y * width + x) + 3).join()
            const { _size: size } = plot.querySelector(".js-plotly-plot")._fullLayout
            const experts = window.__moeviz.store.experts
            const bottom = size.t + size.h
            return {
                box: size.h,
                top: plot.querySelector(".js-plotly-plot").layout.yaxis.range[1],
                heights: Array.from({ length: experts }, (_, e) => {
                    const x = Math.floor(size.l + ((e + 0.5) * size.w) / experts)
                    let top = bottom
                    for (let y = bottom - 1; y >= size.t; y--) if (colors.some((c) => c.join() === of(x, y))) top = y
                    return bottom - top
                }),
            }
        }"""
    )


def test_bars_are_as_high_as_the_loads_that_experts_keep(new_page):
    page = new_page("?token_dropping=expert&capacity_factor=2", color_scheme="light")
    button(page, "Run").click()
    until(page, "m.step > 30")
    button(page, "Pause").click()
    until(page, "!m.playing")
    settle(page)
    seen, experts = painted_heights(page), look(page, "store.experts")
    newest = "window.__moeviz.store.count - 1"
    kept = page.evaluate(
        f"[...window.__moeviz.store.kept_load.slice(({newest}) * {experts}, ({newest} + 1) * {experts})]"
    )
    load = page.evaluate(f"[...window.__moeviz.store.load.slice(({newest}) * {experts}, ({newest} + 1) * {experts})]")
    assert look(page, "bars") == kept
    assert max(load) > max(kept), "some are dropped, and hatched above the bar"
    for height, tokens in zip(seen["heights"], kept, strict=True):
        assert abs(height - tokens / seen["top"] * seen["box"]) <= 2


def test_data_is_painted_before_plotly_comes_and_stays_where_it_is(browser, address):
    page = browser.new_page()
    held = []
    page.route("**/plotly.min.js*", lambda route: held.append(route))
    page.goto(address)
    until(page, "m && m.drawn > 0 && (m.recorded || m.store.count)")
    page.wait_for_timeout(1000)
    canvas = page.locator("[data-chart=loss] canvas")
    painted = (
        "c => [c.width, c.height, c.getContext('2d').getImageData(60, 20, c.width - 80, c.height - 60).data.join()]"
    )
    before = canvas.evaluate(painted)
    assert set(before[2].split(",")) != {"0"}
    assert not look(page, "complete")
    assert held, "it was asked for"
    for route in held:
        route.continue_()
    page.unroute_all(behavior="ignoreErrors")
    until(page, "m.complete && m.recorded")
    assert canvas.evaluate(painted) == before
    page.context.close()


def test_keys_run_step_and_pause(new_page):
    page = new_page()
    until(page, "m.status === 'ready'")
    page.locator(".js-plotly-plot").first.hover()
    page.keyboard.press("ArrowRight")
    until(page, "m.step === 1 && !m.playing")
    page.keyboard.press("Space")
    until(page, "m.step > 5 && m.playing")
    page.keyboard.press("Space")
    until(page, "!m.playing")
    page.keyboard.press("Home")
    until(page, "m.step === 0")


def test_run_to_a_step_stops_there_and_the_button_says_run_again(new_page):
    page = new_page()
    page.get_by_role("button", name="Run to…").click()
    page.get_by_role("spinbutton", name="Step").fill("60")
    page.keyboard.press("Enter")
    button(page, "Run to this step").click()
    until(page, "m.step === 60 && !m.playing")
    expect(button(page, "Run")).to_be_visible()
    expect(button(page, "Pause")).to_have_count(0)


def test_zoom_survives_updates_and_hover_marks_the_same_step_everywhere(new_page):
    page = new_page()
    button(page, "Run").click()
    until(page, "m.step > 60")
    chart = page.locator(".js-plotly-plot").nth(4)
    box = chart.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 80, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, middle, steps=4)
    page.mouse.up()
    until(page, "m.view.zoom !== null")
    zoom, step = look(page, "view.zoom"), look(page, "step")
    page.mouse.move(box["x"] + 120, middle)
    until(page, "m.view.hover !== null")
    until(page, f"m.step > {step} + 40")
    assert look(page, "view.zoom") == zoom
    page.mouse.dblclick(box["x"] + 120, middle)
    until(page, "m.view.zoom === null")


def test_an_address_of_nonsense_is_answered_and_the_page_runs(new_page):
    page = new_page("?gating=foo&num_experts=10&num_groups=4&bogus=1")
    expect(page.get_by_text("gating=foo is not a choice")).to_be_visible()
    expect(page.get_by_text("10 experts cannot be split into 4 equal groups")).to_be_visible()
    button(page, "Run").click()
    until(page, "m.step > 20 && m.store.experts === 10")


def settings_in(search):
    return re.sub(r"[?&]run=[^&]*", "", search)


def test_a_shared_address_opens_the_same_settings(new_page):
    page = new_page("?preset=deepseek_v2")
    link = page.evaluate("location.search")
    assert "gating=softmax" in link
    other = new_page(link)
    expect(other.get_by_role("combobox", name="Preset", exact=True)).to_have_value("DeepSeek-V2 style")
    # The run itself is the first browser's.
    assert settings_in(other.evaluate("location.search")) == settings_in(link)


def test_the_formulas_page_and_back_leaves_the_run(new_page):
    page = new_page("?preset=loss_free")
    button(page, "Run").click()
    until(page, "m.step > 30")
    button(page, "Pause").click()
    until(page, "!m.playing")
    step = look(page, "step")
    page.get_by_role("link", name="Formulas and code").click()
    expect(page.get_by_role("heading", name="Formulas and code")).to_be_visible()
    page.get_by_role("link", name="Playground").click()
    until(page, f"m.step >= {step} && m.store.count > 20")
    expect(page.get_by_role("combobox", name="Preset", exact=True)).to_have_value("Loss-free bias")


def test_another_number_of_experts_waits_for_the_button_and_then_begins_again(new_page):
    page = new_page()
    button(page, "Step").click()
    until(page, "m.step === 1")
    page.get_by_text("More", exact=True).click()
    field = page.get_by_role("spinbutton", name="Experts E")
    field.fill("8")
    field.press("Tab")
    assert look(page, "store.experts") == 16
    button(page, "Restart with these").click()
    until(page, "m.step === 0 && m.store.experts === 8")


def chips(page):
    """What the identities say: name -> True, False or None."""
    found = page.evaluate("[...document.querySelectorAll('.chip')].map(c => [c.innerText.slice(-2), c.dataset.holds])")
    return {name: {"true": True, "false": False, "null": None}[holds] for name, holds in found}


def test_identities_hold_on_every_preset_and_expert_choice_is_seen_to_fail_one(new_page):
    page = new_page()
    assert set(chips(page).values()) == {None}, "nothing is computed before the run trains"
    button(page, "E1 is not computed").click()
    expect(page.get_by_text("Computed once your run trains.")).to_be_visible()
    page.keyboard.press("Escape")
    button(page, "Run").click()
    until(page, "m.step > 30 && m.truth")
    assert list(chips(page)) == [f"E{number}" for number in range(1, 9)]
    assert chips(page) == {**dict.fromkeys(chips(page), True), "E5": None, "E6": None}, "no bias, no groups"

    for name, preset in PRESETS.items():
        if page.get_by_role("combobox", name="Preset", exact=True).input_value() != preset.title:
            choose(page, "Preset", preset.title)
            until(page, f"m.store.knobs.router === {preset.knobs.router!r}")
            serial = look(page, "truth.serial")
            until(page, f"m.truth.serial > {serial} + 1")
        seen = chips(page)
        assert False not in (seen[chip] for chip in seen if chip != "E7"), (name, seen)
        assert seen["E7"] is (preset.knobs.router != "expert_choice"), (name, seen)

    chip = button(page, "E8 holds")
    chip.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".info-box")).to_contain_text("Σ load")
    page.keyboard.press("Escape")
    assert look(page, "playing"), "a key for a chip is none for the transport"


def test_expert_choice_sees_the_future_in_red(new_page):
    page = new_page("?router=expert_choice")
    button(page, "Run").click()
    until(page, "m.step > 2 && m.truth")
    assert chips(page)["E7"] is False
    chip = button(page, "E7 does not hold")
    assert "✗" in chip.inner_text()
    expect(page.locator(".alarm")).to_contain_text("E7: Expert choice sees the future")
    chip.click()
    expect(page.locator(".info-box")).to_contain_text("earlier ones go elsewhere")


def test_more_stays_open_while_sliders_come_and_go_above_it(new_page):
    page = new_page()
    page.get_by_text("More", exact=True).click()
    expect(page.get_by_text("Experts per token K")).to_be_visible()
    choose(page, "Balancing", "Auxiliary loss")
    expect(page.get_by_role("slider", name="Loss α over the batch")).to_be_visible()
    expect(page.get_by_text("Experts per token K")).to_be_visible()
    page.get_by_role("radio", name="expert", exact=True).click()
    expect(page.get_by_role("slider", name="Capacity factor")).to_be_visible()
    expect(page.get_by_text("Experts per token K")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_one_readable_column(new_page, scheme):
    page = new_page(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    button(page, "Run").click()
    until(page, "m.step > 20")
    lefts = {round(chart.bounding_box()["x"]) for chart in page.locator(".js-plotly-plot").all()}
    assert len(lefts) == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_everything_that_matters_fits_a_projector(new_page):
    page = new_page()
    button(page, "Run").click()
    until(page, "m.step > 20")
    assert page.locator(".js-plotly-plot").count() == 6
    for chart in page.locator(".js-plotly-plot").all():
        box = chart.bounding_box()
        assert box["y"] + box["height"] <= 800, "the six charts fit without scrolling"
    assert page.get_by_text("Token dropping", exact=True).bounding_box()["y"] < 800


def test_the_first_visitor_of_a_server_may_open_any_page(browser):
    with serving() as address:
        page = browser.new_page()
        page.goto(address + "formulas")
        expect(page.get_by_role("heading", name="Formulas and code")).to_be_visible()
        expect(page.get_by_role("link", name="Playground", exact=True)).to_be_visible()
        page.context.close()


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
    yield "dropping, layers, gaps, held-out losses and settings that change", make_rows(2, 5, 40, dropping=True)
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


def settle(page):
    """Wait until the script of the page has rested for a while, and its effects have reached the charts."""
    page.evaluate(
        """() => new Promise((resolve) => {
            const app = document.querySelector("[data-test-script-state]")
            let since = performance.now()
            const timer = setInterval(() => {
                if (app.dataset.testScriptState !== "notRunning") since = performance.now()
                if (performance.now() - since < 1000) return
                clearInterval(timer)
                resolve()
            }, 20)
        })"""
    )


def labels(page):
    return [mark["label"] for mark in look(page, "marks")]


def drag_slider(page, share):
    """Move the slider u with the mouse to a share of its width."""
    track = page.locator(".st-key-u [role=group]").bounding_box()
    thumb = page.locator(".st-key-u [data-testid=stSliderThumbValue]").locator("..").bounding_box()
    y = thumb["y"] + thumb["height"] / 2
    page.mouse.move(thumb["x"] + thumb["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(track["x"] + share * track["width"], y, steps=4)
    page.mouse.up()


def test_a_slider_writes_to_the_run_and_leaves_one_mark_for_each_move(new_page):
    page = new_page("?preset=loss_free")
    button(page, "Run").click()
    until(page, "m.step > 10 && m.playing")
    settle(page)
    written = write_count(page)
    slider = page.get_by_role("slider", name="Bias update speed u")
    slider.focus()
    page.keyboard.press("ArrowRight")
    until(page, "m.writes === 1 && m.marks.length === 1")
    settle(page)
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
    button(page, "Run").click()
    until(page, "m.step > 10 && m.playing")
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
def test_a_write_that_fails_is_made_good_by_the_page(browser, address, refusal):
    page = browser.new_page()
    page.goto(address + "?preset=loss_free")
    until(page, "m && m.drawn > 0")
    button(page, "Run").click()
    until(page, "m.step > 10 && m.playing")
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
    page.context.close()


FEED = """
    // Steps from `from` to `until` as the server would send them, with a spike, a dip and a change of settings.
    (store, from, until) => {
        const n = until - from
        const columns = Object.fromEntries([...store.columns].map(([name, { width, data }]) =>
            [name, new data.constructor(n * width).fill(name === "eval_loss" ? NaN : 1)]))
        for (let i = 0; i < n; i++) {
            const step = from + i
            columns.step[i] = step
            columns.version[i] = Number(step >= 1777)
            columns.max_vio[i] = step === 1234 ? 50 : 1 + ((step * 7919) % 100) / 100
            columns.task_loss[i] = step === 777 ? 0.25 : 1 + ((step * 104729) % 100) / 100
            if (step % 25 === 0) columns.eval_loss[i] = step / 1e6
        }
        store.append({ n }, columns)
    }
"""


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
    page.evaluate(f"({FEED})(window.__moeviz.store, 1, 6000)")
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
    button(page, "Run").click()
    until(page, "m.step > 10 && m.playing")
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
def test_a_run_that_is_refused_says_so_in_the_servers_words_and_may_come_back(browser, address, status):
    page = browser.new_page()
    page.goto(address)
    until(page, "m && m.drawn > 0 && m.status === 'ready'")
    page.route("**/moeviz/run/**", lambda route: route.fulfill(status=status, json={"error": "Not for you."}))
    expect(notice(page)).to_have_text("Not for you.", timeout=20 * SECOND)
    page.unroute_all(behavior="ignoreErrors")
    expect(notice(page)).to_be_hidden(timeout=20 * SECOND)
    button(page, "Step").click()
    until(page, "m.step === 1")
    page.context.close()


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


def test_a_page_outlives_a_restart_of_its_server(browser):
    port, page = free_port(), browser.new_page()
    with serving(port) as address:
        page.goto(address + "?bias_rule=sign&u=0.01")
        until(page, "m && m.drawn > 0 && m.status === 'ready'")
        button(page, "Run").click()
        until(page, "m && m.step > 10 && m.playing")
        token = look(page, "token")
    expect(notice(page)).to_have_text("The server does not answer; trying again.")
    with serving(port):
        until(page, f"m.token !== {token!r} && m.status === 'ready' && m.store.knobs && m.store.knobs.u === 0.01")
        expect(notice(page)).to_be_hidden()
        button(page, "Run").click()
        until(page, "m.step > 10 && m.playing")
        page.context.close()
