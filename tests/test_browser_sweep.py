"""Sweep and Map in a real browser: panels fill by themselves, cancel keeps what is done, a dot opens its settings."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browsing import SECOND, to

pytestmark = pytest.mark.browser
SMALL = "?num_experts=8&d_model=16&d_expert=16&balancing=loss_free"


def start(page: Page, seeds: str, steps: int) -> None:
    to(page, "Sweep")
    page.get_by_role("radio", name=seeds).click()
    box = page.get_by_role("spinbutton", name="Steps")
    box.fill(str(steps))
    box.press("Enter")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()


def drawn_to(page: Page) -> int:
    """The newest step in any panel."""
    return page.evaluate(
        """() => Math.max(0, ...[...document.querySelectorAll(".js-plotly-plot")].flatMap(
            (plot) => (plot.data || []).flatMap((trace) => Array.from(trace.x || []))))"""
    )


def test_panels_fill_while_it_runs_and_results_come_by_themselves(new_page):
    page = new_page(SMALL)
    start(page, "1 seed", 800)
    expect(page.locator(".js-plotly-plot")).to_have_count(5)
    page.wait_for_function(
        """() => Array.from(document.querySelector(".js-plotly-plot")?.data?.[0]?.x || []).length > 5"""
    )
    first = drawn_to(page)
    page.evaluate("() => document.querySelectorAll('.js-plotly-plot').forEach((plot, i) => { plot.sameAs = i; })")
    expect(page.get_by_text(re.compile("about .* left"))).to_be_visible()
    page.wait_for_function(
        f"""() => Math.max(...[...document.querySelectorAll(".js-plotly-plot")].map(
            (plot) => Array.from(plot.data?.[0]?.x || [0]).pop())) > {first}"""
    )
    expect(page.get_by_text("Means over seeds.")).to_be_visible(timeout=240 * SECOND)
    same = page.evaluate("() => [...document.querySelectorAll('.moeviz .js-plotly-plot')].map((plot) => plot.sameAs)")
    assert same == list(range(5)), "panels stay where they are while they fill"
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    expect(page.get_by_text("1 seed, which gives no interval").first).to_be_visible()
    page.reload()
    expect(page.get_by_text("Means over seeds.")).to_be_visible(timeout=60 * SECOND)
    expect(page.locator(".moeviz .js-plotly-plot")).to_have_count(5)
    with page.expect_download() as found:
        page.get_by_role("button", name="CSV", exact=True).click()
    assert found.value.suggested_filename == "moeviz-sweep-u.csv"


def test_cancel_keeps_what_is_done_and_a_dot_opens_its_settings(new_page):
    page = new_page(SMALL)
    start(page, "3 seeds", 600)
    expect(page.get_by_text("5 of 15 runs done")).to_be_visible(timeout=120 * SECOND)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text(re.compile("Cancelled: (5|10) of 15 runs are done and kept."))).to_be_visible()
    expect(page.get_by_text("Means over seeds.")).to_be_visible()
    to(page, "Map")
    expect(page.get_by_text("Upwards")).to_be_visible()
    dot = page.locator(".js-plotly-plot .scatterlayer .point").first
    dot.wait_for()
    box = dot.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    again = page.get_by_role("button", name="Open its settings on the Playground")
    expect(again).to_be_enabled()
    label = page.get_by_role("combobox", name="Run").input_value()
    told = re.search(r"u ([0-9.]+), seed (\d+), 600 steps", label)
    assert told, label
    again.click()
    expect(page.get_by_role("button", name="New seed")).to_be_visible()
    slider = page.get_by_role("group", name="Bias update speed u")
    expect(slider).to_contain_text(told[1])
