"""The live charts in a real browser: a run's past, smoothed curves, logarithmic axes, a pause of the drawing, files."""

from __future__ import annotations

import base64
import re
import struct
import xml.etree.ElementTree as ET
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from moeviz.live import assets
from tests import browsing
from tests.browsing import (
    READY,
    button,
    choose,
    drag,
    drawn,
    feed,
    fixed,
    look,
    pause,
    run,
    serving,
    settle,
    to_formulas_and_back,
    until,
    watched_pages,
)

pytestmark = pytest.mark.browser
CHARTS = ["load", "history", "bias", "max_vio", "loss", "dropped"]
LINE = (11, 92, 173)  # theme.js, light
SVG = "{http://www.w3.org/2000/svg}"


def train(page, past):
    """Train until after a step, and let the page come to rest."""
    browsing.train(page, past)
    settle(page)


def slider(page):
    return page.get_by_role("slider", name="Step shown")


def live_button(page):
    return page.get_by_role("button", name="Live", exact=True)


def show(page, step):
    """Drag the slider to a step; returns the entry of the store."""
    slider(page).fill(str(step))
    until(page, f"m.view.at === {step}")
    drawn(page)
    return page.evaluate("window.__moeviz.view.index(window.__moeviz.store)")


def tile(page, title):
    """What a tile of the strip says: the number and the line below it."""
    box = page.locator(".moeviz .tile").filter(
        has=page.locator("dt span", has_text=re.compile(f"^{re.escape(title)}$"))
    )
    return box.locator(".value").inner_text(), box.locator(".more").inner_text()


def entry(page, index):
    """One entry of the browser's store, by column."""
    return page.evaluate(
        """(i) => {
            const { store } = window.__moeviz
            return Object.fromEntries([...store.columns].map(
                ([name, { width, data }]) => [name, [...data.subarray(i * width, (i + 1) * width)]]))
        }""",
        index,
    )


def colours(page, chart, wanted, left_of=None, right_of=None):
    """How many pixels of a chart's canvas have a colour, beside a step."""
    return page.evaluate(
        """([chart, wanted, leftOf, rightOf]) => {
            const plot = document.querySelector(`[data-chart=${chart}] .plot`)
            const canvas = plot.querySelector("canvas")
            const { width, height, data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height)
            const { xaxis, _size } = plot.querySelector(".js-plotly-plot")._fullLayout
            const place = (step) => _size.l + xaxis.d2p(step)
            let count = 0
            for (let x = 0; x < width; x++) {
                if (leftOf !== null && x >= place(leftOf) - 4) continue
                if (rightOf !== null && x <= place(rightOf) + 4) continue
                for (let y = 0; y < height; y++) {
                    const at = 4 * (y * width + x)
                    if (wanted.every((part, k) => Math.abs(data[at + k] - part) < 12) && data[at + 3] > 250) count += 1
                }
            }
            return count
        }""",
        [chart, list(wanted), left_of, right_of],
    )


def test_the_past_is_shown_by_every_panel_while_training_goes_on(new_page):
    page = new_page("?token_dropping=expert", color_scheme="light")
    run(page, 120)
    expect(live_button(page)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="E8 holds")).to_be_visible()

    index = show(page, 60)
    then = entry(page, index)
    assert then["step"] == [60]
    step = look(page, "step")
    until(page, f"m.step > {step} + 20 && m.playing")
    assert look(page, "view.at") == 60, "what comes meanwhile changes nothing"
    assert look(page, "bars") == then["kept_load"]
    expect(page.get_by_role("heading", name="Expert load at step 60")).to_be_visible()

    assert tile(page, "step")[0] == "60"
    assert re.fullmatch(r"of \d+", tile(page, "step")[1])
    held_out = page.evaluate(
        "[...window.__moeviz.store.eval_loss.subarray(0, 61)].filter(Number.isFinite).at(-1).toFixed(3)"
    )
    assert tile(page, "held-out loss") == (held_out, f"training {fixed(then['smooth_loss'][0], 3)}")
    assert tile(page, "MaxVio") == (fixed(then["max_vio"][0], 2), f"fair router {fixed(then['fair_max_vio'][0], 2)}")
    assert tile(page, "dead experts")[0] == f"{then['dead_experts'][0]} / 16"
    assert tile(page, "dropped")[0] == f"{fixed(100 * then['dropped_fraction'][0], 0)} %"
    assert float(tile(page, "steps/s")[0]) == pytest.approx(then["steps_per_second"][0], rel=0.06)

    for chart in ("history", "bias", "max_vio", "loss", "dropped"):
        expect(page.locator(f"[data-chart={chart}] .readout")).to_contain_text("step 60")
    assert colours(page, "max_vio", LINE, left_of=60) > 20
    assert colours(page, "max_vio", LINE, right_of=60) == 0, "what comes after is faint"
    expect(page.get_by_role("button", name="E8 holds")).to_be_hidden()
    expect(page.get_by_text("Checked on the newest step only")).to_be_visible()
    expect(page.get_by_role("button", name="Branch from here")).to_be_visible()

    live_button(page).click()
    until(page, "m.view.at === null")
    expect(page.get_by_role("button", name="E8 holds")).to_be_visible()
    expect(page.get_by_role("heading", name="Expert load now")).to_be_visible()
    pause(page)
    settle(page)
    assert look(page, "bars") == entry(page, look(page, "store.count") - 1)["kept_load"]
    assert colours(page, "max_vio", LINE, right_of=60) > 20


def test_settings_are_shown_as_they_were(new_page):
    page = new_page()
    train(page, 20)
    choose(page, "Expert groups", "4")
    until(page, "m.store.knobs.num_groups === 4")
    button(page, "Step").click()
    until(page, "m.marks.length === 1")
    settle(page)
    assert tile(page, "groups / token")[1] == "of 4, at most 2"
    show(page, 10)
    assert tile(page, "groups / token") == ("1", "no groups")


def test_the_time_bar_works_by_keyboard_and_keeps_its_keys_to_itself(new_page):
    page = new_page()
    train(page, 30)
    last = look(page, "step")
    slider(page).focus()
    page.keyboard.press("ArrowLeft")
    until(page, f"m.view.at === {last} - 1")
    expect(slider(page)).to_have_attribute("aria-valuetext", f"step {last - 1} of {last}")
    page.keyboard.press("ArrowDown")
    until(page, f"m.view.at === {last} - 2")
    page.keyboard.press("Home")
    until(page, "m.view.at === 0")
    page.keyboard.press("ArrowRight")
    until(page, "m.view.at === 1")
    page.keyboard.press("Space")
    page.keyboard.press("End")
    until(page, "m.view.at === null")
    settle(page)
    assert (look(page, "step"), look(page, "playing"), look(page, "epoch")) == (last, False, 1), "no key got through"

    page.get_by_role("button", name="One step back").click()
    until(page, f"m.view.at === {last} - 1")
    page.get_by_role("button", name="One step forward").click()
    until(page, "m.view.at === null")
    expect(page.get_by_role("button", name="One step forward")).to_be_disabled()
    page.wait_for_function("document.activeElement === document.body || !document.activeElement.closest('.time-bar')")
    page.keyboard.press("ArrowRight")
    until(page, f"m.step === {last} + 1")


def test_a_reset_is_shown_live_and_keeps_how_charts_are_drawn(new_page):
    page = new_page()
    train(page, 30)
    show(page, 10)
    with_menu(page, lambda: page.get_by_role("checkbox", name="Log values").check())
    button(page, "Reset").click()
    until(page, "m.step === 0 && m.epoch === 2 && m.view.at === null")
    assert look(page, "view.logValues") is True
    page.mouse.move(640, 500)  # away from what explains the button, and lies over the link
    to_formulas_and_back(page)
    until(page, "m.store.count > 0 && m.view.logValues && m.complete")


def test_the_moment_survives_thinning_and_arrows_reach_every_kept_step(new_page):
    page = new_page()
    until(page, "m.status === 'ready'")
    feed(page, 1, 3000)
    until(page, "!m.recorded")
    assert page.evaluate("window.__moeviz.store.step[window.__moeviz.view.index(window.__moeviz.store)]") == 2999
    page.evaluate("window.__moeviz.view.set({ at: 1001 })")
    assert "step 1001" in page.locator(".time-bar .moment").inner_text()
    feed(page, 3000, 9000)
    page.evaluate("window.__moeviz.view.changed()")
    kept = page.evaluate("[...window.__moeviz.store.step.subarray(0, window.__moeviz.store.count)]")
    nearest = min(kept, key=lambda step: abs(step - 1001))
    assert nearest != 1001, "it was thinned away"
    expect(page.locator(".time-bar .moment")).to_have_text(f"step {nearest} of 8999")
    place = kept.index(nearest)
    slider(page).focus()
    for key, by in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        until(page, f"m.view.at === {kept[place + by]}")


def test_a_window_of_the_last_steps_turns_to_the_moment(new_page):
    page = new_page()
    until(page, "m.status === 'ready'")
    feed(page, 1, 1500)
    page.get_by_role("button", name="last 200").click()
    show(page, 321)
    low, high = page.evaluate("window.__moeviz.view.range(window.__moeviz.store)")
    assert low <= 321 <= high
    assert high - low == 200
    expect(page.locator("[data-chart=loss] .readout")).to_contain_text("step 321")


def test_hovering_one_chart_marks_its_step_on_all(new_page):
    page = new_page()
    train(page, 60)
    box = page.locator("[data-chart=loss] .js-plotly-plot").bounding_box()
    page.mouse.move(box["x"] + 120, box["y"] + 70)
    until(page, "m.view.hover !== null")
    step = look(page, "view.hover.step")
    for chart in ("history", "bias", "max_vio", "loss", "dropped"):
        expect(page.locator(f"[data-chart={chart}] .cursor")).to_be_visible()
        expect(page.locator(f"[data-chart={chart}] .readout")).to_contain_text(f"step {step}\n")
        place = page.evaluate(
            """([chart, step]) => {
                const plot = document.querySelector(`[data-chart=${chart}] .plot`)
                const { xaxis, _size } = plot.querySelector(".js-plotly-plot")._fullLayout
                return parseFloat(plot.querySelector(".cursor").style.left) - _size.l - xaxis.d2p(step)
            }""",
            [chart, step],
        )
        assert abs(place) < 1, "where Plotly's axis has that step"


def with_menu(page, act):
    page.get_by_role("button", name="Charts").click()
    act()
    page.keyboard.press("Escape")
    drawn(page)


def mean_by_hand(values, gaps, weight):
    """The oracle: every value as often as its gap says, the newest weighing 1, each one before it `weight` as much."""
    steps = [value for value, gap in zip(values, gaps, strict=True) for _ in range(gap)]
    weights = [weight ** (len(steps) - 1 - k) for k in range(len(steps))]
    return sum(w * value for w, value in zip(weights, steps, strict=True)) / sum(weights)


def test_smoothing_is_the_debiased_mean_also_where_steps_are_missing(new_page):
    page = new_page()
    values, gaps = [4.0, 1.0, 3.0, 2.5, 9.0, 2.0], [1, 1, 3, 1, 10, 2]
    steps = [sum(gaps[: k + 1]) - 1 for k in range(len(gaps))]
    for weight in (0.0, 0.6, 0.99):
        seen = page.evaluate(
            """async ([address, values, steps, weight]) => {
                const { smoothed } = await import(address)
                return [...smoothed({ step: steps }, values.length - 1, weight, (i) => values[i])]
            }""",
            [f"/moeviz/live/smoothing.js?v={assets.VERSION}", values, steps, weight],
        )
        by_hand = [mean_by_hand(values[: k + 1], gaps[: k + 1], weight) for k in range(len(values))]
        assert seen == pytest.approx(by_hand, rel=1e-6), weight


STROKES = """async ([address, points, width]) => {
    const { line } = await import(address)
    const ctx = document.createElement("canvas").getContext("2d")
    const strokes = []
    ctx.beginPath = () => strokes.push([])
    ctx.moveTo = (x, y) => strokes.at(-1).push([[x, y]])
    ctx.lineTo = (x, y) => strokes.at(-1).at(-1).push([x, y])
    const [store, x, y] = [{ step: points.map(([x]) => x) }, (x) => x, (y) => y ?? NaN]
    line({ ctx, store, first: 0, last: points.length - 1, x, y }, (i) => points[i][1], { color: "red", width })
    return strokes
}"""


def far(points, drawn):
    """How far the farthest of these points is from a line through the drawn ones."""
    starts, ends = (np.array(drawn)[part, None] for part in (slice(None, -1), slice(1, None)))
    way, along = ends - starts, np.array(points) - starts
    share = np.clip((along * way).sum(-1) / np.maximum((way**2).sum(-1), 1e-12), 0, 1)
    return np.hypot(*np.moveaxis(along - share[..., None] * way, -1, 0)).min(0).max()


@pytest.mark.parametrize("width", [1, 2])
def test_a_line_with_fewer_points_looks_the_same(new_page, width):
    rng = np.random.default_rng(0)
    places = np.arange(1200) / 3  # three to a pixel
    shapes = {
        "noise": rng.normal(60, 20, 1200),
        "steps of the sign rule": rng.choice([-1.0, 1.0], 1200).cumsum(),
        "ripple": np.where(np.arange(1200) % 2, 0.1, -0.1),
        "ramp": np.arange(1200) * 0.7,
        "upward bend": np.arange(1200) ** 2 / 5000,
        "downward bend": -(np.arange(1200) ** 2) / 5000,
        "spike": np.where(np.arange(1200) == 700, 90.0, 5.0),
    }
    page = new_page()
    counts = {}
    for name, heights in shapes.items():
        points = np.stack([places, heights], 1).tolist()
        points[400][1] = None
        strokes = page.evaluate(STROKES, [f"/moeviz/live/brush.js?v={assets.VERSION}", points, width])
        parts = [part for stroke in strokes for part in stroke]
        for one, other in pairwise(parts):
            gap = np.allclose(one[-1], points[399], atol=0.5) and other[0] == points[401]
            assert gap or one[-2:] == other[:2], name
        before, after = ([part for part in parts if (part[0][0] < places[400]) == early] for early in (True, False))
        for these, told in ((before, points[:400]), (after, points[401:])):
            assert far(told, list(chain(*these))) < 0.55, name
            assert these[0][0] == told[0], name
            assert np.allclose(these[-1][-1], told[-1], atol=0.5), name
        assert max(sum(map(len, stroke)) for stroke in strokes) <= (3000 if width == 1 else 35), name
        counts[name] = sum(map(len, parts))
    assert counts["ripple"] <= 20
    assert counts["ramp"] <= 20
    assert counts["spike"] <= 20


def readout(page, chart):
    return page.locator(f"[data-chart={chart}] .readout").inner_text()


def test_one_slider_smooths_three_charts_and_the_keys_say_so(new_page):
    page = new_page("?token_dropping=expert", color_scheme="light")
    train(page, 100)
    key = page.locator("[data-chart=max_vio] .key")
    assert key.inner_text().split("\n")[0].strip().startswith("this run"), "raw unless somebody asks"
    assert "smoothed 0.94" in page.locator("[data-chart=loss] .key").inner_text()
    index = show(page, 80)
    usual = readout(page, "loss")
    with_menu(page, lambda: page.get_by_role("slider", name="Smoothing").fill("0.6"))
    until(page, "m.view.smoothing === 0.6")
    for chart in ("max_vio", "loss", "dropped"):
        expect(page.locator(f"[data-chart={chart}] .key")).to_contain_text("smoothed 0.60")
    expect(key.get_by_text("each step")).to_be_visible()
    columns = {"max_vio": "max_vio", "loss": "task_loss"}
    for chart, column in columns.items():
        values = page.evaluate(f"[...window.__moeviz.store.{column}.subarray(0, {index} + 1)]")
        by_hand = mean_by_hand(values, [1] * len(values), 0.6)
        said = re.search(r"smoothed 0.60: ([\d.]+)", readout(page, chart))
        assert float(said.group(1)) == pytest.approx(by_hand, rel=6e-3), chart
    with_menu(page, lambda: page.get_by_role("slider", name="Smoothing").fill("0"))
    until(page, "m.view.smoothing === 0")
    assert "smoothed" not in readout(page, "loss")
    with_menu(page, lambda: page.get_by_role("button", name="Usual").click())
    until(page, "m.view.smoothing === null")
    assert readout(page, "loss") == usual


def test_the_menu_works_by_keyboard_and_keeps_its_keys_to_itself(new_page):
    page = new_page()
    train(page, 20)
    last = look(page, "step")
    page.get_by_role("button", name="Charts").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="How charts are drawn")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    until(page, "m.view.smoothing === 0.95")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    until(page, "m.view.smoothing === null")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    until(page, "m.view.logValues")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="How charts are drawn")).to_be_hidden()
    settle(page)
    assert (look(page, "step"), look(page, "playing")) == (last, False)


def axes(page, chart):
    return page.evaluate(
        f"(({{ xaxis, yaxis }}) => [xaxis.type, yaxis.type])(document.querySelector("
        f"'[data-chart={chart}] .js-plotly-plot')._fullLayout)"
    )


def line_at(page, chart, step, value):
    """Whether the line is painted where Plotly's own axes have this step and value."""
    return page.evaluate(
        """([chart, step, value, line]) => {
            const plot = document.querySelector(`[data-chart=${chart}] .plot`)
            const canvas = plot.querySelector("canvas")
            const { xaxis, yaxis, _size } = plot.querySelector(".js-plotly-plot")._fullLayout
            const [x, y] = [_size.l + xaxis.d2p(step), _size.t + yaxis.d2p(value)].map(Math.round)
            const { data } = canvas.getContext("2d").getImageData(x - 1, y - 1, 3, 3)
            const near = (at) => line.every((part, k) => Math.abs(data[at + k] - part) < 40)
            return Array.from({ length: 9 }, (_, k) => 4 * k).some((at) => data[at + 3] > 100 && near(at))
        }""",
        [chart, step, value, list(LINE)],
    )


def test_log_axes_are_plotlys_and_the_lines_lie_on_them(new_page):
    page = new_page("?preset=loss_free", color_scheme="light")
    train(page, 150)
    values = page.evaluate("[...window.__moeviz.store.max_vio.subarray(0, window.__moeviz.store.count)]")
    steps = (1, 2, 5, 30, 100, 150)
    assert all(line_at(page, "max_vio", step, values[step]) for step in steps)

    def switch(name):
        with_menu(page, lambda: page.get_by_role("checkbox", name=name).click())

    switch("Log values")
    until(page, "m.view.logValues")
    settle(page)
    assert [axes(page, chart)[1] for chart in CHARTS[1:]] == ["linear", "linear", "log", "log", "log"]
    assert all(line_at(page, "max_vio", step, values[step]) for step in steps)
    assert "log, no 0" in page.locator("[data-chart=max_vio] .unit").inner_text()
    switch("Log steps")
    until(page, "m.view.logSteps")
    settle(page)
    assert {axes(page, chart)[0] for chart in CHARTS[1:]} == {"log"}
    assert all(line_at(page, "max_vio", step, values[step]) for step in steps)
    for chart in CHARTS[1:]:
        expect(page.locator(f"[data-chart={chart}] .xtitle")).to_have_text("step (log, no 0)")
    assert heat_is_where_its_step_is(page)

    # A zoom by hand is one of steps, not of their logarithms.
    box = page.locator("[data-chart=loss] .js-plotly-plot").bounding_box()
    drag(page, (box["x"] + 120, box["y"] + 70), (box["x"] + 200, box["y"] + 70))
    until(page, "m.view.zoom !== null")
    low, high = look(page, "view.zoom")
    assert 2 < low < high < 200
    page.locator(".moeviz .unzoom").click()
    switch("Log values")
    switch("Log steps")
    until(page, "!m.view.logValues && !m.view.logSteps")
    settle(page)
    assert {axis for chart in CHARTS[1:] for axis in axes(page, chart)} == {"linear"}
    assert all(line_at(page, "max_vio", step, values[step]) for step in steps)


def heat_is_where_its_step_is(page):
    """Among logarithmic steps the first ones are many pixels wide: their colours follow from their loads alone."""
    return page.evaluate(
        """async (address) => {
            const { cividis } = await import(address)
            const { store } = window.__moeviz
            const plot = document.querySelector("[data-chart=history] .plot")
            const canvas = plot.querySelector("canvas")
            const { xaxis, yaxis, _size } = plot.querySelector(".js-plotly-plot")._fullLayout
            return [1, 2, 3, 6].every((step) => Array.from({ length: 16 }, (_, e) => e).every((e) => {
                const [x, y] = [_size.l + xaxis.d2p(step) + 3, _size.t + yaxis.d2p(e)].map(Math.round)
                const seen = canvas.getContext("2d").getImageData(x, y, 1, 1).data
                const relative = store.load[store.row(step, 0) + e] / store.mean_load[step]
                const tone = Math.min(255, Math.round(255 * Math.sqrt(relative / 4)))
                return cividis(tone / 255).every((part, k) => Math.abs(part - seen[k]) < 4)
            }))
        }""",
        f"/moeviz/live/theme.js?v={assets.VERSION}",
    )


def test_zeros_on_a_log_axis_are_said_and_harm_nothing(new_page):
    page = new_page("?num_experts=4&token_dropping=expert&capacity_factor=4")
    train(page, 30)
    with_menu(page, lambda: page.get_by_role("checkbox", name="Log values").check())
    expect(page.get_by_text("Nothing is dropped: 0 has no place on a log axis.")).to_be_visible()
    with_menu(page, lambda: page.get_by_role("checkbox", name="Log steps").check())
    button(page, "Reset").click()
    until(page, "m.step === 0 && m.epoch === 2")
    button(page, "Step").click()
    until(page, "m.step === 1")
    assert look(page, "lastError") == ""


def test_drawing_pauses_while_data_come_and_catches_up(new_page):
    page = new_page()
    run(page, 40)
    with_menu(page, lambda: page.get_by_role("checkbox", name="Pause drawing").check())
    until(page, "m.view.until !== null")
    held = look(page, "view.until")
    expect(page.get_by_text(f"Drawing paused at step {held}")).to_be_visible()
    times, bars, count = look(page, "drawn"), look(page, "bars"), look(page, "store.count")
    until(page, f"m.step > {held} + 60 && m.playing")
    assert (look(page, "drawn"), look(page, "bars")) == (times, bars), "nothing was drawn"
    assert look(page, "store.count") > count, "data came"
    assert tile(page, "step")[0] == str(held)
    page.get_by_role("combobox", name="Expert", exact=True).select_option("3")
    until(page, f"m.drawn > {times}")
    assert look(page, "bars") == bars, "looking elsewhere shows nothing newer"
    page.get_by_role("button", name="Draw again").click()
    until(page, f"m.view.until === null && m.step > {held} + 60")
    page.wait_for_function(f"Number(document.querySelector('.moeviz .tile .value').innerText) > {held} + 60")
    expect(page.get_by_text("Drawing paused")).to_be_hidden()
    assert look(page, "bars") != bars


@pytest.fixture(scope="module")
def saved(browser, address, tmp_path_factory):
    """Every chart in both formats: (chart, format) -> path."""
    folder, paths = tmp_path_factory.mktemp("charts"), {}
    with watched_pages(browser, "saved") as watch:
        page = watch(address)
        page.goto(address + "?token_dropping=expert&num_groups=4")
        until(page, f"{READY} && m.complete")
        train(page, 60)
        show(page, 50)
        page.get_by_role("button", name="Charts").click()
        for chart in CHARTS:
            page.get_by_role("combobox", name="Chart to save").select_option(chart)
            for kind in ("png", "svg"):
                with page.expect_download() as download:
                    page.get_by_role("button", name=f"Save as {kind.upper()}").click()
                paths[chart, kind] = folder / download.value.suggested_filename
                download.value.save_as(paths[chart, kind])
                page.wait_for_timeout(100)  # what exceeds ten downloads in a second Chromium drops without a word
    return paths


def test_names_of_layers_lie_beside_each_other_where_their_lines_do_not(new_page, tmp_path):
    page = new_page("?num_layers=4&d_model=16&d_expert=16")
    train(page, 40)
    page.get_by_role("button", name="Charts").click()
    page.get_by_role("combobox", name="Chart to save").select_option("max_vio")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as SVG").click()
    download.value.save_as(tmp_path / "max_vio.svg")
    texts = [node for node in ET.parse(tmp_path / "max_vio.svg").iter(f"{SVG}text") if node.get("y")]
    places = {node.text: float(node.get("y")) for node in texts if re.fullmatch(r"L\d", node.text or "")}
    newest = "window.__moeviz.store.count - 1"
    values = page.evaluate(f"[...window.__moeviz.store.max_vio.slice(({newest}) * 4, ({newest} + 1) * 4)]")
    assert max(values) - min(values) < 2, "collapse is alike in all layers, their lines end near each other"
    assert sorted(places) == ["L0", "L1", "L2", "L3"]
    assert all(high - low >= 11.9 for low, high in pairwise(sorted(places.values())))


def test_every_chart_is_saved_under_a_name_that_says_what_it_is(saved):
    names = {path.stem.rsplit("-", 1)[1] for path in saved.values()}
    assert len(names) == 1, "the settings, in six digits"
    for (chart, kind), path in saved.items():
        assert re.fullmatch(rf"moeviz-{chart}-step-50-[0-9a-f]{{6}}\.{kind}", path.name)


@pytest.mark.parametrize("chart", CHARTS)
def test_an_svg_has_lines_and_letters(saved, chart):
    root = ET.parse(saved[chart, "svg"]).getroot()
    assert root.tag == f"{SVG}svg"
    data = root.find(f".//{SVG}g[@class='data']")
    drawn = [shape for shape in data.iter(f"{SVG}path") if "fill" in shape.attrib]
    assert len(drawn) > (3 if chart == "history" else 2)
    assert not any("NaN" in shape.get("d") for shape in drawn)
    pictures = list(data.iter(f"{SVG}image"))
    assert len(pictures) == {"history": 1, "dropped": 1}.get(chart, 0), "the heatmap, and the tile of the hatching"
    said = " ".join("".join(text.itertext()) for text in root.iter(f"{SVG}text"))
    assert {"load": "expert", "history": "step"}.get(chart, "step") in said
    titles = {"load": "Expert load at step 50", "max_vio": "MaxVio", "dropped": "Dropped pairs"}
    assert titles.get(chart, "") in said
    assert "step 50" in root.find(f"{SVG}title").text


@pytest.mark.parametrize("chart", CHARTS)
def test_a_png_has_twice_the_pixels_of_the_chart(saved, chart):
    data = Path(saved[chart, "png"]).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    root = ET.parse(saved[chart, "svg"]).getroot()
    assert struct.unpack(">II", data[16:24]) == (2 * int(root.get("width")), 2 * int(root.get("height")))


def test_lines_in_a_file_are_those_of_the_screen(new_page, saved):
    """The SVG, painted by the browser, against the PNG, which is the canvas itself."""
    page = new_page()
    for chart in CHARTS:
        files = [base64.b64encode(saved[chart, kind].read_bytes()).decode() for kind in ("svg", "png")]
        share = page.evaluate(
            """async (files) => {
                const kinds = ["svg+xml", "png"]
                const pixels = await Promise.all(files.map(async (file, k) => {
                    const image = new Image()
                    image.src = `data:image/${kinds[k]};base64,${file}`
                    await image.decode()
                    const [width, height] = [280, 200]
                    const canvas = Object.assign(document.createElement("canvas"), { width, height })
                    const ctx = canvas.getContext("2d")
                    ctx.drawImage(image, 0, 0, width, height)
                    return ctx.getImageData(0, 0, width, height).data
                }))
                let differing = 0
                for (let at = 0; at < pixels[0].length; at += 4) {
                    const away = [0, 1, 2].map((k) => Math.abs(pixels[0][at + k] - pixels[1][at + k]))
                    if (Math.max(...away) > 100) differing += 1
                }
                return differing / (pixels[0].length / 4)
            }""",
            files,
        )
        assert share < 0.03, (chart, share)


def test_a_picture_that_cannot_be_made_says_so(new_page):
    page = new_page()
    page.get_by_role("button", name="Charts").click()
    page.evaluate(
        """() => {
            const whole = Plotly.downloadImage
            Plotly.downloadImage = () => {
                Plotly.downloadImage = whole
                throw Error("No memory.")
            }
        }"""
    )
    page.get_by_role("button", name="Save as PNG").click()
    expect(page.get_by_text("Not saved. No memory.")).to_be_visible()
    with page.expect_download():
        page.get_by_role("button", name="Save as PNG").click()
    expect(page.get_by_text("Not saved")).to_have_count(0)


BRANCHING = """
import streamlit as st

from moeviz.live.component import live_charts
from moeviz.live.routes import routes
from moeviz.ui import controls, hosting, session, transport


def branched():
    st.session_state["told"] = dict(st.session_state["charts"]["branch"])


if __name__ == "__main__":
    me, run = controls.sidebar("playground"), session.run()
    transport.bar(run)
    state = run.state()
    known = {"playing": state.playing, "status": state.status, "version": run.version, "epoch": state.epoch}
    live_charts(run.token, visit=me.visit, known=known, key="charts", on_branch=branched)
    st.text(f"branch: {st.session_state.get('told')}")
else:
    app = st.App(__file__, routes=routes(hosting.host), lifespan=hosting.lifespan)
"""


def test_a_branch_is_asked_for_at_the_step_shown(watch, tmp_path):
    script = tmp_path / "branching.py"
    script.write_text(BRANCHING)
    with serving(str(script)) as address:
        page = watch(address, viewport={"width": 1280, "height": 900})
        page.goto(address)
        until(page, READY)
        branch = page.get_by_role("button", name="Branch from here")
        train(page, 40)
        expect(branch).to_be_hidden()
        expect(page.get_by_text("branch: None")).to_be_visible()
        show(page, 25)
        branch.click()
        expect(page.get_by_text("branch: {'step': 25, 'twin': 0}")).to_be_visible()
        page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_past_and_the_menu_fit(new_page, scheme):
    page = new_page(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    train(page, 30)
    show(page, 12)
    page.get_by_role("button", name="Charts").click()
    box = page.get_by_role("dialog", name="How charts are drawn").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
