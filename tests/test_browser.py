"""The real page in a real browser, as visitors use it from top to bottom."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browsing import (
    LOOKS,
    button,
    choose,
    drag,
    drawn,
    look,
    pause,
    run,
    run_to,
    to_formulas_and_back,
    until,
)

pytestmark = pytest.mark.browser


def max_vio(page):
    """Mean of the last 20 steps."""
    return look(page, "store.max_vio.slice(0, window.__moeviz.store.count).slice(-20).reduce((a, b) => a + b) / 20")


def test_collapse_and_recovery_by_hand(new_page):
    page = new_page("?speed=max")
    expect(page.get_by_text("Recorded start of the preset")).to_be_visible()
    before = look(page, "bars.join()")
    run(page, 100)
    expect(page.get_by_text("Recorded start of the preset")).to_have_count(0)
    assert look(page, "bars.join()") != before
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

    pause(page)
    step = look(page, "step")
    to_formulas_and_back(page)
    until(page, f"m.step >= {step} && m.store.count > 20 && m.marks.length === 3")
    expect(page.get_by_role("combobox", name="Gating", exact=True)).to_have_value("softmax")

    button(page, "Reset").click()
    until(page, "m.step === 0 && m.marks.length === 0")
    assert look(page, "lastError") == ""


def painted_heights(page):
    """Height of each expert's bar in pixels, counted on the canvas by the colours of bars, and the top of the axis.

    Looked for over a bar's whole width: a dash of the line at the balanced load can hide the end of a bar.
    """
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
                    const at = (place) => Math.floor(size.l + ((e + place) * size.w) / experts)
                    let top = bottom
                    for (let x = at(0.2); x < at(0.8); x++) {
                        for (let y = top - 1; y >= size.t; y--) if (colors.some((c) => c.join() === of(x, y))) top = y
                    }
                    return bottom - top
                }),
            }
        }"""
    )


def test_keys_and_buttons_drive_the_run_and_charts_follow_it(new_page):
    page = new_page("?token_dropping=expert&capacity_factor=2")
    until(page, "m.status === 'ready'")
    keys_step_run_pause_and_reset(page)
    run_to(page, 30)
    expect(button(page, "Run")).to_be_visible()
    expect(button(page, "Pause")).to_have_count(0)
    bars_are_as_high_as_the_loads_that_experts_keep(page)
    run(page, 60)
    a_zoom_survives_updates_and_pointing_marks_a_step(page)


def keys_step_run_pause_and_reset(page):
    page.locator(".js-plotly-plot").first.hover()
    page.keyboard.press("ArrowRight")
    until(page, "m.step === 1 && !m.playing")
    page.keyboard.press("Space")
    until(page, "m.step > 5 && m.playing")
    expect(button(page, "Pause")).to_be_visible()
    page.keyboard.press("Space")
    until(page, "!m.playing")
    page.keyboard.press("Home")
    until(page, "m.step === 0")


def bars_are_as_high_as_the_loads_that_experts_keep(page):
    newest = "[...m.store.{0}.slice((m.store.count - 1) * m.store.experts, m.store.count * m.store.experts)]"
    until(page, f"m.bars.join() === {newest.format('kept_load')}.join()")
    drawn(page)
    seen = painted_heights(page)
    kept, load = (
        page.evaluate(f"(() => {{ const m = window.__moeviz; return {newest.format(name)} }})()")
        for name in ("kept_load", "load")
    )
    assert max(load) > max(kept), "some are dropped, and hatched above the bar"
    for height, tokens in zip(seen["heights"], kept, strict=True):
        assert abs(height - tokens / seen["top"] * seen["box"]) <= 2


def a_zoom_survives_updates_and_pointing_marks_a_step(page):
    box = page.locator(".js-plotly-plot").nth(4).bounding_box()
    middle = box["y"] + box["height"] / 2
    drag(page, (box["x"] + 80, middle), (box["x"] + 160, middle))
    until(page, "m.view.zoom !== null")
    zoom, step = look(page, "view.zoom"), look(page, "step")
    page.mouse.move(box["x"] + 120, middle)
    until(page, "m.view.hover !== null")
    until(page, f"m.step > {step} + 40")
    assert look(page, "view.zoom") == zoom
    page.mouse.dblclick(box["x"] + 120, middle)
    until(page, "m.view.zoom === null")


def test_data_is_painted_before_plotly_comes_and_stays_where_it_is(watch, address):
    page = watch(address, own=True)  # one that has not read Plotly.js before
    held = []
    page.route("**/plotly.min.js*", lambda route: held.append(route))
    page.goto(address + "?seed=3")
    until(page, "m && m.drawn > 0 && m.recorded && m.status === 'ready' && m.agreed")
    expect(page.locator("[data-test-script-state=notRunning]")).to_be_visible()
    expect(page.get_by_text("Recorded start")).to_be_visible()
    drawn(page)
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


def test_an_address_opens_its_settings_or_says_why_not(new_page, address):
    page = new_page("?preset=deepseek_v2")
    link = page.evaluate("location.search")
    assert "gating=softmax" in link
    other = new_page(link)
    expect(other.get_by_role("combobox", name="Preset", exact=True)).to_have_value("DeepSeek-V2 style")
    # The run itself is the first browser's.
    assert settings_in(other.evaluate("location.search")) == settings_in(link)

    page.goto(address + "?gating=foo&num_experts=10&num_groups=4&seed=3&bogus=1")
    expect(page.get_by_text("gating=foo is not a choice")).to_be_visible()
    expect(page.get_by_text("10 experts cannot be split into 4 equal groups")).to_be_visible()
    until(page, "m && m.status === 'ready' && m.store.count")
    shown = look(page, "recorded"), look(page, "bars.length"), look(page, "step")
    assert shown == (False, 10, 0), "its own step 0, where there is no recorded start of its kind"
    expect(page.get_by_text("Recorded start")).to_be_hidden()
    run(page, 5)


def settings_in(search):
    return re.sub(r"[?&]run=[^&]*", "", search)


def test_more_stays_open_while_sliders_come_and_go_above_it_and_its_sizes_wait_for_the_button(new_page):
    page = new_page()
    button(page, "Step").click()
    until(page, "m.step === 1")
    page.get_by_text("More", exact=True).click()
    expect(page.get_by_text("Experts per token K")).to_be_visible()
    choose(page, "Balancing", "Auxiliary loss")
    loss = page.get_by_role("slider", name="Loss α over the batch")
    # It moves up, and is there twice first.
    expect(page.get_by_test_id("stExpanderDetails").locator(loss)).to_have_count(0)
    expect(loss).to_be_visible()
    expect(page.get_by_text("Experts per token K")).to_be_visible()
    page.get_by_role("radio", name="expert", exact=True).click()
    expect(page.get_by_role("slider", name="Capacity factor")).to_be_visible()
    expect(page.get_by_text("Experts per token K")).to_be_visible()

    field = page.get_by_role("spinbutton", name="Experts E")
    field.fill("8")
    field.press("Tab")
    assert look(page, "store.experts") == 16
    assert look(page, "step") == 1
    button(page, "Restart with these").click()
    until(page, "m.step === 0 && m.store.experts === 8")


def chips(page):
    """What the identities say: name -> True, False or None."""
    found = page.evaluate("[...document.querySelectorAll('.chip')].map(c => [c.innerText.slice(-2), c.dataset.holds])")
    return {name: {"true": True, "false": False, "null": None}[holds] for name, holds in found}


def test_identities_hold_and_expert_choice_is_seen_to_fail_one(new_page):
    page = new_page()
    assert set(chips(page).values()) == {None}, "nothing is computed before the run trains"
    button(page, "E1 is not computed").click()
    expect(page.get_by_text("Computed once your run trains.")).to_be_visible()
    page.keyboard.press("Escape")
    button(page, "Run").click()
    until(page, "m.step > 0 && m.truth")
    drawn(page)
    assert list(chips(page)) == [f"E{number}" for number in range(1, 9)]
    assert chips(page) == {**dict.fromkeys(chips(page), True), "E5": None, "E6": None}, "no bias, no groups"
    button(page, "E8 holds").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".info-box")).to_contain_text("Σ load")
    page.keyboard.press("Escape")
    assert look(page, "playing"), "a key for a chip is none for the transport"

    choose(page, "Preset", "Expert choice, the cheater")
    chip = button(page, "E7 does not hold")
    expect(chip).to_be_visible()
    assert "✗" in chip.inner_text()
    seen = chips(page)
    assert [name for name in seen if seen[name] is False] == ["E7"]
    expect(page.locator(".alarm")).to_contain_text("E7: Expert choice sees the future")
    chip.click()
    expect(page.locator(".info-box")).to_contain_text("earlier ones go elsewhere")


def test_everything_that_matters_fits_a_projector_and_a_phone_shows_one_readable_column(new_page):
    page = new_page()
    _transport_is_one_row(page, "Run")
    run(page, 20)
    expect(button(page, "Pause")).to_be_visible()
    _transport_is_one_row(page, "Pause")
    assert page.locator(".js-plotly-plot").count() == 6
    for chart in page.locator(".js-plotly-plot").all():
        box = chart.bounding_box()
        assert box["y"] + box["height"] <= 800, "the six charts fit without scrolling"
    assert page.get_by_text("Token dropping", exact=True).bounding_box()["y"] < 800

    page.set_viewport_size({"width": 390, "height": 844})
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        expect(page.locator(f".moeviz[data-theme={scheme}]")).to_be_visible()
        page.wait_for_function(ONE_COLUMN, polling=LOOKS)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


ONE_COLUMN = """() => new Set([...document.querySelectorAll(".js-plotly-plot")].map(
    (chart) => Math.round(chart.getBoundingClientRect().x))).size === 1"""


def _transport_is_one_row(page, begins):
    first = button(page, begins).bounding_box()
    last = page.locator(".st-key-receipt button:visible").bounding_box()
    assert last["y"] == pytest.approx(first["y"], abs=8)
    assert last["x"] + last["width"] < 1280
