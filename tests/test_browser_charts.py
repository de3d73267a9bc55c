"""The live charts in a real browser: a run's past, smoothed curves, logarithmic axes, a pause of the drawing, files."""

from __future__ import annotations

import base64
import re
import struct
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
from playwright.sync_api import expect

from moeviz.live import assets
from moeviz.presets import PRESETS
from tests.browsing import (
    drag,
    drawn,
    feed,
    fixed,
    look,
    run_to,
    settle,
    until,
    watched_pages,
)
from tests.charts_alone import Tab, catch_up, mount, new_run, train_to

pytestmark = pytest.mark.browser
CHARTS = ["load", "history", "bias", "max_vio", "loss", "dropped"]
LINE = (11, 92, 173)  # theme.js, light
SVG = "{http://www.w3.org/2000/svg}"


def slider(page):
    return page.get_by_role("slider", name="Step shown")


def live_button(page):
    return page.get_by_role("button", name="Live", exact=True)


def move_to(page, step):
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


def test_the_past_is_shown_by_every_panel_while_training_goes_on(show):
    run = new_run(step=120, token_dropping="expert")
    run.playing = True
    page = show(run)
    expect(live_button(page)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="E8 holds")).to_be_visible()

    index = move_to(page, 60)
    then = entry(page, index)
    assert then["step"] == [60]
    train_to(page, run, 140)
    assert look(page, "view.at") == 60, "what comes meanwhile changes nothing"
    assert look(page, "bars") == then["kept_load"]
    expect(page.get_by_role("heading", name="Expert load at step 60")).to_be_visible()

    assert tile(page, "step") == ("60", "of 140")
    held_out = page.evaluate(
        "[...window.__moeviz.store.eval_loss.subarray(0, 61)].filter(Number.isFinite).at(-1).toFixed(3)"
    )
    assert tile(page, "held-out loss") == (held_out, f"training {fixed(then['smooth_loss'][0], 3)}")
    assert tile(page, "MaxVio") == (fixed(then["max_vio"][0], 2), f"fair router {fixed(then['fair_max_vio'][0], 2)}")
    assert tile(page, "dead experts")[0] == f"{then['dead_experts'][0]} / 16"
    assert tile(page, "dropped")[0] == f"{fixed(100 * then['dropped_fraction'][0], 0)} %"
    assert float(tile(page, "steps/s")[0]) == pytest.approx(then["steps_per_second"][0], rel=0.06)

    for chart in CHARTS[1:]:
        expect(page.locator(f"[data-chart={chart}] .readout")).to_contain_text("step 60")
    assert colours(page, "max_vio", LINE, left_of=60) > 20
    assert colours(page, "max_vio", LINE, right_of=60) == 0, "what comes after is faint"
    expect(page.get_by_role("button", name="E8 holds")).to_be_hidden()
    expect(page.get_by_text("Checked on the newest step only")).to_be_visible()

    branch = page.get_by_role("button", name="Branch from here")
    branch.click()
    assert page.evaluate("window.told") == [["branch", {"step": 60, "twin": 0}]]
    live_button(page).click()
    until(page, "m.view.at === null")
    expect(branch).to_be_hidden()
    expect(page.get_by_role("button", name="E8 holds")).to_be_visible()
    expect(page.get_by_role("heading", name="Expert load now")).to_be_visible()
    drawn(page)
    assert look(page, "bars") == entry(page, look(page, "store.count") - 1)["kept_load"]
    assert colours(page, "max_vio", LINE, right_of=60) > 20


def test_settings_are_shown_as_they_were(show):
    run = new_run(step=20)
    page = show(run)
    run.set_knobs(replace(run.knobs, num_groups=4, groups_kept=2))
    train_to(page, run, 21)
    assert [mark["step"] for mark in look(page, "marks")] == [21]
    assert tile(page, "groups / token")[1] == "of 4, at most 2"
    move_to(page, 10)
    assert tile(page, "groups / token") == ("1", "no groups")


def test_time_bar_and_menu_work_by_keyboard_and_keep_their_keys_to_themselves(new_page):
    """On the real page, whose own keys run, step and reset the training."""
    page = new_page()
    run_to(page, 30)
    settle(page)
    slider(page).focus()
    for key, at in (("ArrowLeft", 29), ("ArrowDown", 28), ("Home", 0), ("ArrowRight", 1)):
        page.keyboard.press(key)
        until(page, f"m.view.at === {at}")
    expect(slider(page)).to_have_attribute("aria-valuetext", "step 1 of 30")
    page.keyboard.press("Space")
    page.keyboard.press("End")
    until(page, "m.view.at === null")

    page.get_by_role("button", name="Charts").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="How charts are drawn")).to_be_visible()
    for key, condition in (
        ("ArrowRight", "m.view.smoothing === 0.95"),
        ("Space", "m.view.smoothing === null"),
        ("Space", "m.view.logValues"),
    ):
        page.keyboard.press("Tab")
        page.keyboard.press(key)
        until(page, condition)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="How charts are drawn")).to_be_hidden()
    settle(page)
    assert (look(page, "step"), look(page, "playing"), look(page, "epoch")) == (30, False, 1), "no key got through"

    page.get_by_role("button", name="One step back").click()
    until(page, "m.view.at === 29")
    page.get_by_role("button", name="One step forward").click()
    until(page, "m.view.at === null")
    expect(page.get_by_role("button", name="One step forward")).to_be_disabled()
    page.wait_for_function("document.activeElement === document.body || !document.activeElement.closest('.time-bar')")
    page.keyboard.press("ArrowRight")
    until(page, "m.step === 31")


def test_a_reset_is_shown_live_and_keeps_how_charts_are_drawn(show):
    run = new_run(step=30)
    page = show(run)
    move_to(page, 10)
    with_menu(page, lambda: page.get_by_role("checkbox", name="Log values").check())
    run.reset()
    catch_up(page, run)
    assert (look(page, "step"), look(page, "view.at"), look(page, "view.logValues")) == (0, None, True)
    page.evaluate("leave()")
    expect(page.locator(".moeviz")).to_have_count(0)
    mount(page, run)
    assert look(page, "view.logValues")


def test_the_moment_survives_thinning_and_arrows_reach_every_kept_step(show):
    page = show(new_run())
    feed(page, 1, 3000)
    assert page.evaluate("window.__moeviz.store.step[window.__moeviz.view.index(window.__moeviz.store)]") == 2999
    page.evaluate("window.__moeviz.view.set({ at: 1001 })")
    expect(page.locator(".time-bar .moment")).to_have_text("step 1001 of 2999")
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


def test_a_window_of_the_last_steps_turns_to_the_moment(show):
    page = show(new_run())
    feed(page, 1, 1500)
    page.get_by_role("button", name="last 200").click()
    move_to(page, 321)
    low, high = page.evaluate("window.__moeviz.view.range(window.__moeviz.store)")
    assert low <= 321 <= high
    assert high - low == 200
    expect(page.locator("[data-chart=loss] .readout")).to_contain_text("step 321")


def step_titles(page):
    return page.evaluate(
        "[...document.querySelectorAll('.moeviz .xtitle')].map(t => t.textContent).filter(t => t.startsWith('step'))"
    )


def test_charts_say_when_steps_are_missing_and_only_then(show):
    page = show(new_run())
    feed(page, 1, 6000)
    page.get_by_role("button", name="last 1000").click()
    until(page, "m.view.window === '1000'")
    drawn(page)
    assert set(step_titles(page)) == {"step"}
    page.get_by_role("button", name="all steps").click()
    page.wait_for_function("document.querySelector('.moeviz').textContent.includes('older ones thinned')")
    assert set(step_titles(page)) == {"step (older ones thinned, extremes kept)"}
    for title in page.locator(".moeviz .xtitle").all():
        card = title.locator("xpath=ancestor::article").bounding_box()
        box = title.bounding_box()
        assert card["x"] <= box["x"], "it fits"
        assert box["x"] + box["width"] <= card["x"] + card["width"], "it fits"


def test_hovering_one_chart_marks_its_step_on_all(show):
    page = show(new_run(step=60))
    box = page.locator("[data-chart=loss] .js-plotly-plot").bounding_box()
    page.mouse.move(box["x"] + 120, box["y"] + 70)
    until(page, "m.view.hover !== null")
    step = look(page, "view.hover.step")
    for chart in CHARTS[1:]:
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


def mean_by_hand(values, weight):
    """The oracle: the newest value weighs 1, each one before it `weight` as much."""
    weights = [weight ** (len(values) - 1 - k) for k in range(len(values))]
    return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)


def readout(page, chart):
    return page.locator(f"[data-chart={chart}] .readout").inner_text()


def test_one_slider_smooths_three_charts_and_the_keys_say_so(show):
    page = show(new_run(step=100, token_dropping="expert"))
    key = page.locator("[data-chart=max_vio] .key")
    assert key.inner_text().split("\n")[0].strip().startswith("this run"), "raw unless somebody asks"
    assert "smoothed 0.94" in page.locator("[data-chart=loss] .key").inner_text()
    index = move_to(page, 80)
    usual = readout(page, "loss")
    with_menu(page, lambda: page.get_by_role("slider", name="Smoothing").fill("0.6"))
    until(page, "m.view.smoothing === 0.6")
    for chart in ("max_vio", "loss", "dropped"):
        expect(page.locator(f"[data-chart={chart}] .key")).to_contain_text("smoothed 0.60")
    expect(key.get_by_text("each step")).to_be_visible()
    columns = {"max_vio": "max_vio", "loss": "task_loss"}
    for chart, column in columns.items():
        values = page.evaluate(f"[...window.__moeviz.store.{column}.subarray(0, {index} + 1)]")
        by_hand = mean_by_hand(values, 0.6)
        said = re.search(r"smoothed 0.60: ([\d.]+)", readout(page, chart))
        assert float(said.group(1)) == pytest.approx(by_hand, rel=6e-3), chart
    with_menu(page, lambda: page.get_by_role("slider", name="Smoothing").fill("0"))
    until(page, "m.view.smoothing === 0")
    assert "smoothed" not in readout(page, "loss")
    with_menu(page, lambda: page.get_by_role("button", name="Usual").click())
    until(page, "m.view.smoothing === null")
    assert readout(page, "loss") == usual


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


def test_log_axes_are_plotlys_and_the_lines_lie_on_them(show):
    page = show(new_run(step=150, **asdict(PRESETS["loss_free"].knobs)))
    values = page.evaluate("[...window.__moeviz.store.max_vio.subarray(0, window.__moeviz.store.count)]")
    steps = (1, 2, 5, 30, 100, 150)
    assert all(line_at(page, "max_vio", step, values[step]) for step in steps)

    def switch(name):
        with_menu(page, lambda: page.get_by_role("checkbox", name=name).click())

    switch("Log values")
    until(page, "m.view.logValues")
    drawn(page)
    assert [axes(page, chart)[1] for chart in CHARTS[1:]] == ["linear", "linear", "log", "log", "log"]
    assert all(line_at(page, "max_vio", step, values[step]) for step in steps)
    assert "log, no 0" in page.locator("[data-chart=max_vio] .unit").inner_text()
    switch("Log steps")
    until(page, "m.view.logSteps")
    drawn(page)
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
    drawn(page)
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


def test_zeros_on_a_log_axis_are_said_and_harm_nothing(show):
    run = new_run(step=30, recipe={"num_experts": 4}, token_dropping="expert", capacity_factor=4.0)
    page = show(run)
    with_menu(page, lambda: page.get_by_role("checkbox", name="Log values").check())
    expect(page.get_by_text("Nothing is dropped: 0 has no place on a log axis.")).to_be_visible()
    with_menu(page, lambda: page.get_by_role("checkbox", name="Log steps").check())
    run.reset()
    catch_up(page, run)
    train_to(page, run, 1)
    expect(page.locator(".moeviz .notice")).to_be_hidden()


def test_drawing_pauses_while_data_come_and_catches_up(show):
    run = new_run(step=40)
    run.playing = True
    page = show(run)
    with_menu(page, lambda: page.get_by_role("checkbox", name="Pause drawing").check())
    expect(page.get_by_text("Drawing paused at step 40")).to_be_visible()
    times, bars = look(page, "drawn"), look(page, "bars")
    train_to(page, run, 100)
    assert (look(page, "drawn"), look(page, "bars")) == (times, bars), "nothing was drawn"
    assert look(page, "store.lastStep") == 100, "data came"
    assert tile(page, "step")[0] == "40"
    page.get_by_role("combobox", name="Expert", exact=True).select_option("3")
    until(page, f"m.drawn > {times}")
    assert look(page, "bars") == bars, "looking elsewhere shows nothing newer"
    page.get_by_role("button", name="Draw again").click()
    until(page, "m.view.until === null")
    drawn(page)
    assert tile(page, "step")[0] == "100"
    expect(page.get_by_text("Drawing paused")).to_be_hidden()
    assert look(page, "bars") != bars


@pytest.fixture(scope="module")
def saved(browser, alone, tab, tmp_path_factory):
    """Every chart in both formats: (chart, format) -> path."""
    folder, paths = tmp_path_factory.mktemp("charts"), {}
    run = new_run(step=60, token_dropping="expert", num_groups=4)
    with watched_pages(browser, "saved") as watch:
        # Two pages: what exceeds ten downloads of a page in a second Chromium drops without a word.
        for kind, page in (("png", tab), ("svg", Tab(watch(alone), alone))):
            page = page.show(run)
            move_to(page, 50)
            page.get_by_role("button", name="Charts").click()
            for chart in CHARTS:
                page.get_by_role("combobox", name="Chart to save").select_option(chart)
                with page.expect_download() as download:
                    page.get_by_role("button", name=f"Save as {kind.upper()}").click()
                paths[chart, kind] = folder / download.value.suggested_filename
                download.value.save_as(paths[chart, kind])
    return paths


def test_names_of_layers_lie_beside_each_other_where_their_lines_do_not(show, tmp_path):
    page = show(new_run(step=40, recipe={"num_layers": 4, "d_model": 16, "d_expert": 16}))
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


def test_an_svg_has_lines_and_letters(saved):
    for chart in CHARTS:
        root = ET.parse(saved[chart, "svg"]).getroot()
        assert root.tag == f"{SVG}svg"
        data = root.find(f".//{SVG}g[@class='data']")
        shapes = [shape for shape in data.iter(f"{SVG}path") if "fill" in shape.attrib]
        assert len(shapes) > (3 if chart == "history" else 2), chart
        assert not any("NaN" in shape.get("d") for shape in shapes), chart
        pictures = list(data.iter(f"{SVG}image"))
        assert len(pictures) == {"history": 1, "dropped": 1}.get(chart, 0), "the heatmap, and the tile of the hatching"
        said = " ".join("".join(text.itertext()) for text in root.iter(f"{SVG}text"))
        assert ("expert" if chart == "load" else "step") in said
        titles = {"load": "Expert load at step 50", "max_vio": "MaxVio", "dropped": "Dropped pairs"}
        assert titles.get(chart, "") in said
        assert "step 50" in root.find(f"{SVG}title").text, chart


def test_a_png_has_twice_the_pixels_of_the_chart(saved):
    for chart in CHARTS:
        data = saved[chart, "png"].read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        root = ET.parse(saved[chart, "svg"]).getroot()
        size = 2 * int(root.get("width")), 2 * int(root.get("height"))
        assert struct.unpack(">II", data[16:24]) == size, chart


def test_lines_in_a_file_are_those_of_the_screen(tab, saved):
    """The SVG, painted by the browser, against the PNG, which is the canvas itself."""
    page = tab.page
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


def test_a_picture_that_cannot_be_made_says_so(show):
    page = show(new_run())
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


def test_on_a_phone_the_past_and_the_menu_fit(show):
    run = new_run(step=30)
    page = show(run, size=(390, 844))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        catch_up(page, run)
        expect(page.locator(".moeviz")).to_have_attribute("data-theme", scheme)
        move_to(page, 12)
        page.get_by_role("button", name="Charts").click()
        box = page.get_by_role("dialog", name="How charts are drawn").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.keyboard.press("Escape")
