"""Sweep and Map in a real browser: panels fill by themselves, cancel keeps what is done, a dot opens its settings."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browsing import LOOKS, SECOND, to

pytestmark = pytest.mark.browser
SMALL = "?num_experts=8&d_model=16&d_expert=16&balancing=loss_free"
PANELS = ".moeviz .js-plotly-plot"
NEWEST = f"""Math.max(0, ...[...document.querySelectorAll("{PANELS}")].flatMap(
    (plot) => (plot.data || []).flatMap((trace) => Array.from(trace.x || []))))"""  # step in any panel


def start(page: Page, seeds: str, steps: int) -> None:
    page.get_by_role("radio", name=seeds).click()
    box = page.get_by_role("spinbutton", name="Steps")
    box.fill(str(steps))
    box.press("Enter")
    page.get_by_role("button", name="Start", exact=True).click()


def test_results_come_by_themselves_and_are_there_after_a_reload_and_a_dot_opens_its_settings(new_page):
    page = new_page(SMALL)
    to(page, "Sweep")
    start(page, "1 seed", 100)
    expect(page.get_by_text("Means over seeds.")).to_be_visible(timeout=240 * SECOND)
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    expect(page.get_by_text("1 seed, which gives no interval").first).to_be_visible()
    page.reload()
    expect(page.get_by_text("Means over seeds.")).to_be_visible()
    expect(page.locator(PANELS)).to_have_count(5)
    with page.expect_download() as found:
        page.get_by_role("button", name="CSV", exact=True).click()
    assert found.value.suggested_filename == "moeviz-sweep-u.csv"

    to(page, "Map")
    expect(page.get_by_text("Upwards")).to_be_visible()
    dot = page.locator(".js-plotly-plot .scatterlayer .point").first
    dot.wait_for()
    box = dot.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    again = page.get_by_role("button", name="Open its settings on the Playground")
    expect(again).to_be_enabled()
    label = page.get_by_role("combobox", name="Run").input_value()
    told = re.search(r"u ([0-9.]+), seed (\d+), 100 steps", label)
    assert told, label
    again.click()
    expect(page.get_by_role("button", name="New seed")).to_be_visible()
    slider = page.get_by_role("group", name="Bias update speed u")
    expect(slider).to_contain_text(told[1])


def test_panels_stay_where_they_are_while_they_fill_until_the_visitor_cancels(new_page):
    page = new_page(SMALL)
    to(page, "Sweep")
    start(page, "3 seeds", 9000)  # more than is done by the end of the test, on whatever machine
    expect(page.locator(PANELS)).to_have_count(5)
    page.wait_for_function(f"{NEWEST} > 5", polling=LOOKS)
    page.evaluate(f"() => document.querySelectorAll('{PANELS}').forEach((plot, i) => {{ plot.sameAs = i; }})")
    expect(page.get_by_text(re.compile("about .* left"))).to_be_visible()
    first = page.evaluate(NEWEST)
    page.wait_for_function(f"{NEWEST} > {first}", polling=LOOKS)
    same = page.evaluate(f"() => [...document.querySelectorAll('{PANELS}')].map((plot) => plot.sameAs)")
    assert same == list(range(5))
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text(re.compile("Cancelled: (0|5|10) of 15 runs are done and kept."))).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
