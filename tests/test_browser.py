"""The real page in a real browser, started as the README says."""

from __future__ import annotations

import os
import re

import pytest
from playwright.sync_api import expect

from moeviz.presets import PRESETS
from tests.browsing import (
    button,
    choose,
    drag,
    drawn,
    look,
    pause,
    run,
    run_to,
    serving,
    settle,
    to_formulas_and_back,
    train,
    until,
)

pytestmark = pytest.mark.browser


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
    run(page, 100)
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

    pause(page)
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


def test_bars_are_as_high_as_the_loads_that_experts_keep(new_page):
    page = new_page("?token_dropping=expert&capacity_factor=2", color_scheme="light")
    train(page, 30)
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


def test_data_is_painted_before_plotly_comes_and_stays_where_it_is(watch, address):
    page = watch(address)
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
    run_to(page, 60)
    expect(button(page, "Run")).to_be_visible()
    expect(button(page, "Pause")).to_have_count(0)


def test_zoom_survives_updates_and_hover_marks_the_same_step_everywhere(new_page):
    page = new_page()
    run(page, 60)
    chart = page.locator(".js-plotly-plot").nth(4)
    box = chart.bounding_box()
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


def test_a_run_of_another_kind_shows_its_own_step_0_and_not_the_recorded_start(new_page):
    page = new_page("?num_experts=8&seed=3")
    until(page, "m.status === 'ready' && m.store.count")
    assert (look(page, "recorded"), look(page, "bars.length"), look(page, "step")) == (False, 8, 0)
    expect(page.get_by_text("Recorded start")).to_be_hidden()
    page = new_page("?seed=3")
    until(page, "m.recorded")
    expect(page.get_by_text("Recorded start")).to_be_visible()


def test_while_the_model_is_built_charts_say_that_they_are_recorded_and_after_run_what_they_wait_for(watch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\nwhile 'spawn_main' in str(sys.orig_argv) and not os.path.exists(os.environ['GO']):\n"
        "    time.sleep(0.1)\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with serving(env=os.environ | {"PYTHONPATH": path, "GO": str(tmp_path / "go")}) as address:
        page = watch(address)
        page.goto(address)
        until(page, "m && m.status === 'starting' && m.complete && m.recorded")
        badge, notice = page.get_by_text("Recorded start"), page.get_by_text("The model is being built.")
        expect(badge).to_be_visible()
        expect(notice).to_be_hidden()
        button(page, "Run").click()
        expect(notice).to_be_visible()
        expect(badge).to_be_hidden()
        (tmp_path / "go").touch()
        until(page, "m.step > 10 && !m.recorded")
        page.context.close()


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
    train(page, 30)
    step = look(page, "step")
    to_formulas_and_back(page)
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
            until(page, f"m.truth.serial > {serial} + 2")
            drawn(page)
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
    loss = page.get_by_role("slider", name="Loss α over the batch")
    expect(page.get_by_test_id("stExpanderDetails").locator(loss)).to_have_count(
        0
    )  # it moves up, and is there twice first
    expect(loss).to_be_visible()
    expect(page.get_by_text("Experts per token K")).to_be_visible()
    page.get_by_role("radio", name="expert", exact=True).click()
    expect(page.get_by_role("slider", name="Capacity factor")).to_be_visible()
    expect(page.get_by_text("Experts per token K")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_one_readable_column(new_page, scheme):
    page = new_page(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    run(page, 20)
    lefts = {round(chart.bounding_box()["x"]) for chart in page.locator(".js-plotly-plot").all()}
    assert len(lefts) == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_everything_that_matters_fits_a_projector(new_page):
    page = new_page()
    run(page, 20)
    assert page.locator(".js-plotly-plot").count() == 6
    for chart in page.locator(".js-plotly-plot").all():
        box = chart.bounding_box()
        assert box["y"] + box["height"] <= 800, "the six charts fit without scrolling"
    assert page.get_by_text("Token dropping", exact=True).bounding_box()["y"] < 800


def test_the_first_visitor_of_a_server_may_open_any_page(watch):
    with serving() as address:
        page = watch(address)
        page.goto(address + "formulas")
        expect(page.get_by_role("heading", name="Formulas and code")).to_be_visible()
        expect(page.get_by_role("link", name="Playground", exact=True)).to_be_visible()
        page.context.close()
