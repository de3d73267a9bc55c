"""Twins, scrubbing and branching by hand on the real pages, with numbers held against the engine's own."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import TimeoutError, expect

from moeviz.config import Knobs, Recipe
from moeviz.engine import Twins
from tests.browsing import LOOKS, SECOND, look, run_to, to, until

pytestmark = pytest.mark.browser


def to_compare(page):
    to(page, "Compare")
    until(page, "m.columns && m.complete && m.twins.length > 0")


def add_twin(page, setting, value):
    page.get_by_role("button", name="Add a twin").click()
    choose_in(page, "What is different", setting)
    choose_in(page, "Its value", value)
    before = look(page, "twins.length")
    page.get_by_role("button", name="Add twin", exact=True).click()
    until(page, f"m.twins.length === {before + 1}")
    expect(page.get_by_role("button", name="Add twin", exact=True)).to_have_count(0)


def choose_in(page, label, option):
    """Choose in a menu whose entries may be about to be replaced, since they depend on another menu."""
    menu, entry = page.get_by_role("combobox", name=label), page.get_by_role("option", name=option, exact=True)
    for _ in range(20):
        menu.click()
        try:
            entry.click(timeout=5 * SECOND)
            return expect(menu).to_have_value(option)
        except TimeoutError:
            continue  # the next click closes the menu, the one after opens it again
    raise AssertionError(f"{label} never offered {option}")


def loads_of(page, twin, step):
    """What the browser has of a twin at a step."""
    return page.evaluate(
        "([twin, step]) => { const { store } = window.__moeviz.twins[twin]; const i = store.indexOf(step);"
        " return [store.step[i], [...store.load.subarray(store.row(i, 0), store.row(i, 0) + store.experts)],"
        " store.routed_differently[i]] }",
        [twin, step],
    )


def test_twins_start_alike_show_what_the_engine_computes_and_four_are_seen_at_once(new_page):
    page = new_page("?bias_rule=sign&speed=max")
    to_compare(page)
    # Both pages bring their modules, which remember things: there must be one of each all the same.
    assert page.evaluate("Object.keys(window.__moevizModules).length") == 1
    expect(page.get_by_text("Add a twin").first).to_be_visible()
    add_twin(page, "Bias update speed u", "0.1")
    add_twin(page, "Gating", "softmax")
    add_twin(page, "Experts per token K", "4")
    run_to(page, 60)
    until(page, "m.twins.every((twin) => twin.store.lastStep === 60)")
    changes = [{}, {"u": 0.1}, {"gating": "softmax"}, {"top_k": 4}]
    knobs = [Knobs(bias_rule="sign", **change) for change in changes]
    engine = Twins(Recipe(), knobs)
    shots = [engine.observe(), *(engine.step(knobs) for _ in range(60))]
    for step in (0, 1, 2, 30, 60):
        for twin in range(4):
            shown = loads_of(page, twin, step)
            assert shown[:2] == [step, shots[step][twin].load_LE[0].tolist()]
            if twin:
                assert shown[2] == pytest.approx(shots[step][twin].apart.routed_differently, abs=1e-6)
    first = next(step for step in range(61) if shots[step][1].apart.routed_differently > 0)
    token = shots[first][1].apart.first_token
    expect(page.get_by_text(f"parted at step {first}, token {token}").first).to_be_visible()
    are_seen_at_once(page, 1280, 800)
    page.emulate_media(color_scheme="dark")
    are_seen_at_once(page, 1024, 768)
    assert "twins=u%3A0.1%3Bgating%3Asoftmax" in page.url
    page.reload()
    until(page, "m && m.twins && m.twins.length === 4 && m.twins.every((twin) => twin.store.lastStep === 60)")


def are_seen_at_once(page, width, height):
    page.set_viewport_size({"width": width, "height": height})
    page.wait_for_function(
        """([width, height]) => [0, 1, 2, 3].every((number) => {
            const box = document.querySelector(`article[data-twin="${number}"]`).getBoundingClientRect()
            return box.left >= 0 && box.right <= width && box.top < height
        })""",
        arg=[width, height],
        polling=LOOKS,
    )


def test_a_branch_from_the_past_of_the_playground_and_going_on_alone(new_page):
    page = new_page("?speed=max")
    run_to(page, 50)
    until(page, "m.store.lastStep === 50")
    before = np.array(page.evaluate("[...window.__moeviz.store.load]"))
    slider = page.get_by_label("Step shown")
    slider.focus()
    for _ in range(20):
        slider.press("ArrowLeft")
    until(page, "m.view.at === 30")
    page.get_by_role("button", name="Branch from here").click()
    expect(page.get_by_text("Branch at step 30 of A")).to_be_visible()
    page.get_by_role("button", name="Branch", exact=True).click()
    page.get_by_role("link", name="Compare them").click()
    until(page, "m.columns && m.twins.length === 2 && m.twins.every((twin) => twin.store.lastStep === 50)")
    expect(page.get_by_alt_text("B parted from A at step 30")).to_be_visible()
    after = [np.array(page.evaluate(f"[...window.__moeviz.twins[{twin}].store.load]")) for twin in (0, 1)]
    size = 51 * 16
    assert (after[0][:size] == before[:size]).all(), "what was shown is as it was"
    assert (after[1][: 31 * 16] == before[: 31 * 16]).all(), "the past is shared"
    assert (after[1][31 * 16 : size] != before[31 * 16 : size]).any()
    run_to(page, 70)

    to(page, "Playground")
    expect(page.get_by_text("Beside it train B")).to_be_visible()
    page.get_by_role("button", name="Go on with A alone").click()
    expect(page.get_by_text("Beside it train B")).to_have_count(0)
    page.keyboard.press("Space")
    until(page, "m.step > 75")
