"""The charts of twins in a real browser, beside the numbers that the server has of the same run."""

from __future__ import annotations

import json
import re
import urllib.parse

import numpy as np
import pytest
from playwright.sync_api import expect

from moeviz.live.twins import decode_twins
from tests import browsing
from tests.browsing import button, drag, drawn, fixed, look, until

pytestmark = pytest.mark.browser
THREE = [{"u": 0.03}, {"gating": "softmax"}, {"bias_rule": "none"}]
SHARED = ["max_vio", "loss", "difference", "spread", "dropped", "routed"]


@pytest.fixture(scope="module")
def app():
    return "tests/compare_page.py"


@pytest.fixture
def compare(new_page):
    """Opens pages of runs with twins."""

    def open_page(size=(1280, 800), scheme="light", **settings):
        asked = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
        viewport = dict(zip(("width", "height"), size, strict=True))
        return new_page(f"?{urllib.parse.urlencode(asked)}", viewport=viewport, color_scheme=scheme)

    return open_page


def train(page, past):
    """Train until after a step, and wait until the page shows all of every twin."""
    browsing.train(page, past)
    until(page, "m.twins.every(lane => lane.said.diverged || lane.store.lastStep === m.step)")
    drawn(page)


def on_server(page):
    """What the server says of the run that the page shows: the overview, and by name of a twin its rows."""
    answer = page.request.get(page.evaluate("`${location.origin}/moeviz/run/${window.__moeviz.token}/twins`"))
    (overview, _), *parts = decode_twins(answer.body())
    names = [said["name"] for said in overview["twins"]]
    return overview, {name: columns for name, (_, columns) in zip(names, parts, strict=True)}


def head(page, name):
    return page.locator("article.twin", has=page.locator(f".letter:has-text('{name}')"))


def numbers(page, name):
    """The four numbers under a twin's heading."""
    return dict(
        zip(
            head(page, name).locator("dt").all_text_contents(),
            head(page, name).locator("dd").all_text_contents(),
            strict=True,
        )
    )


def plot(page, chart):
    return page.locator(f"article[data-chart={chart}] .plot")


def small(page, chart, name):
    return page.locator(f".small[data-chart={chart}][data-look={name}] .plot")


def hover_share(page, chart, share):
    """Point at a place between the left and the right end of a shared chart's axis; gives the step under it."""
    box = plot(page, chart).bounding_box()
    left, right = box["x"] + 42, box["x"] + box["width"] - 26
    page.mouse.move(left + share * (right - left), box["y"] + 0.4 * box["height"])
    until(page, "m.view.hover !== null && m.view.hover.step !== undefined")
    return look(page, "view.hover.step")


def test_each_column_shows_the_numbers_that_the_server_has(compare):
    page = compare(twins=THREE)
    train(page, 60)
    overview, rows = on_server(page)
    assert [said["name"] for said in overview["twins"]] == list("ABCD")
    for place, name in enumerate("ABCD"):
        columns = rows[name]
        assert look(page, f"twins[{place}].store.lastStep") == columns["step"][-1, 0]
        assert look(page, f"columns.get({place}).panels[0].now.loads") == columns["load"][-1].tolist()
        heldout = columns["eval_loss"][np.isfinite(columns["eval_loss"])][-1]
        assert numbers(page, name) == {
            "held-out": fixed(heldout, 3),
            "MaxVio": fixed(columns["max_vio"][-1, 0], 2),
            "dead": f"{columns['dead_experts'][-1, 0]} / 16",
            "dropped": "0 %",
        }
    assert numbers(page, "A") != numbers(page, "D"), "twins with different settings differ by now"
    assert look(page, "lastError") == ""


def test_headings_say_what_differs_and_where_twins_parted(compare):
    page = compare(twins=[{"u": 0.03}, {"u": 0.003}])
    train(page, 30)
    overview, rows = on_server(page)
    expect(head(page, "A")).to_contain_text("base")
    expect(head(page, "B")).to_contain_text("u 0.003 → 0.03")
    expect(head(page, "C")).to_contain_text("no difference yet")
    parted = overview["twins"][1]["parted"]
    differs = np.flatnonzero(rows["B"]["routed_differently"][:, 0] > 0)
    assert parted["step"] == rows["B"]["step"][differs[0], 0], "the clock is the first step of the column"
    share = 100 * rows["B"]["routed_differently"][-1, 0]
    said = f"parted at step {parted['step']}, token {parted['token']} · "
    expect(head(page, "B").locator(".clock")).to_have_text(re.compile(rf"{said}(\d+\.?\d*) % differ now"))
    shown = float(re.search(r"([\d.]+) % differ", head(page, "B").locator(".clock").inner_text()).group(1))
    assert shown == pytest.approx(share, abs=0.5)
    expect(head(page, "C").locator(".clock")).to_have_text(f"identical so far: {look(page, 'step')} steps")
    assert (rows["C"]["routed_differently"] == 0).all()
    assert np.isnan(rows["A"]["routed_differently"]).all()


def test_columns_are_aligned_share_their_scale_and_fit_the_window(compare):
    page = compare(twins=THREE)
    train(page, 40)
    for chart in ("load", "history"):
        boxes = [small(page, chart, name).bounding_box() for name in "ABCD"]
        assert len({(round(box["y"]), round(box["width"]), round(box["height"])) for box in boxes}) == 1
        lefts = [box["x"] for box in boxes]
        assert lefts == sorted(lefts)
        assert [round(head(page, name).bounding_box()["x"]) for name in "ABCD"] == [round(left) for left in lefts]
    top = look(page, "scale[1]")
    highest = page.evaluate("Math.max(...[...window.__moeviz.columns.values()].flatMap(c => c.panels[0].now.loads))")
    assert highest < top <= 2.5 * highest
    assert (
        page.evaluate("new Set([...window.__moeviz.columns.values()].map(c => c.panels[0].extent.range[1])).size") == 1
    )
    for name in SHARED:
        box = plot(page, name).bounding_box()
        assert box["y"] + box["height"] <= 800
        assert box["x"] + box["width"] <= 1280


def painted_height(page, name, expert):
    """Height of an expert's bar on a twin's canvas, as a share of the axis, by the colours of bars.

    Looked for over the bar's whole width: a dash of the line at the balanced load can hide the end of a bar that is
    little higher.
    """
    return small(page, "load", name).evaluate(
        """(plot, expert) => {
            const colors = ["159,191,223", "31,85,150"]
            const canvas = plot.querySelector("canvas")
            const ctx = canvas.getContext("2d")
            const [left, right, bottom] = [32, canvas.width - 3, canvas.height - 15]
            const at = (place) => Math.round(left + ((expert + place) / 16) * (right - left))
            let top = bottom
            for (let x = at(0.2); x < at(0.8); x++) {
                for (let y = top - 1; y >= 14; y--) {
                    if (colors.includes(ctx.getImageData(x, y, 1, 1).data.slice(0, 3).join())) top = y
                }
            }
            return (bottom - top) / (bottom - 14)
        }""",
        expert,
    )


def test_equal_loads_of_different_twins_are_painted_equally_high(compare):
    page = compare(twins=[{"gating": "softmax"}])
    train(page, 100)
    _, rows = on_server(page)
    for step in range(60, 100, 4):
        page.evaluate("step => window.__moeviz.view.set({ at: step })", step)
        drawn(page)
        top = look(page, "scale[1]")
        highest = {}
        for name in "AB":
            [load] = rows[name]["load"][rows[name]["step"][:, 0] == step]
            busiest = int(load.argmax())
            highest[name] = load[busiest]
            assert painted_height(page, name, busiest) == pytest.approx(load[busiest] / top, abs=0.04)
        assert highest["B"] < 0.8 * highest["A"], "a scale of its own would show"


def test_pointing_at_one_chart_marks_the_step_on_all_and_reads_every_twin(compare):
    page = compare(twins=THREE)
    train(page, 60)
    _, rows = on_server(page)
    step = hover_share(page, "routed", 0.5)
    assert 10 < step < look(page, "step")
    for name in SHARED:
        expect(plot(page, name).locator(".cursor")).to_be_visible()
        if name != "dropped":  # there a sentence says that dropping is off
            expect(plot(page, name).locator(".readout")).to_contain_text(f"step {step}")
    for name in "ABCD":
        expect(small(page, "history", name).locator(".cursor")).to_be_visible()
        expect(small(page, "history", name).locator(".readout")).to_be_hidden()
    read = plot(page, "routed").locator(".readout").inner_text().splitlines()
    row = {name: np.flatnonzero(rows[name]["step"][:, 0] == step)[0] for name in "ABCD"}
    assert [line.split()[0] for line in read[1:]] == list("BCD")
    for line, name in zip(read[1:], "BCD", strict=True):
        assert float(line.split()[1]) == pytest.approx(100 * rows[name]["routed_differently"][row[name], 0], abs=0.5)
    spread = plot(page, "spread").locator(".readout").inner_text().splitlines()
    for line, name in zip(spread[1:], "ABCD", strict=True):
        bias = rows[name]["bias"][row[name]]
        assert float(line.split()[1]) == pytest.approx(bias.max() - bias.min(), rel=0.01, abs=1e-4)


def smoothed(values, step):
    """The mean of all values up to a step, each counting 15/16 of the next one."""
    weights = [(15 / 16) ** (step - age) for age in range(step + 1)]
    return sum(weight * float(value) for weight, value in zip(weights, values, strict=False)) / sum(weights)


def test_the_difference_is_the_twin_minus_the_base(compare):
    page = compare(twins=THREE[:2])
    train(page, 50)
    _, rows = on_server(page)
    for figure, column in (("MaxVio", "max_vio"), ("task loss", "task_loss")):
        page.get_by_label("Figure").select_option(label=figure)
        step = hover_share(page, "difference", 0.6)
        drawn(page)
        read = plot(page, "difference").locator(".readout").inner_text().replace("−", "-").splitlines()
        base = smoothed(rows["A"][column][:, 0], step)
        for line, name in zip(read[1:], "BC", strict=True):
            expected = smoothed(rows[name][column][:, 0], step) - base
            assert float(line.split()[1]) == pytest.approx(expected, rel=0.02, abs=2e-4), figure
    expect(plot(page, "difference")).to_have_attribute("aria-label", re.compile("Difference from A, .* at step"))


def test_zoom_is_shared_and_stays_while_training_goes_on(compare):
    page = compare(twins=THREE[:1])
    train(page, 60)
    box = plot(page, "loss").bounding_box()
    left, right = box["x"] + 42, box["x"] + box["width"] - 26
    middle = box["y"] + 0.5 * box["height"]
    drag(page, (left + 0.3 * (right - left), middle), (left + 0.6 * (right - left), middle))
    until(page, "m.view.zoom !== null")
    low, high = look(page, "view.zoom")
    before = look(page, "step")
    assert before / 6 < low < high < before
    button(page, "Run").click()
    until(page, f"m.step > {before} + 20")
    assert look(page, "view.zoom") == [low, high]
    page.wait_for_function(
        "window.__moeviz.charts.every(c => c.axisNow[0].join() === window.__moeviz.view.zoom.join())"
    )
    assert look(page, "columns.get(1).panels[1].axisNow[0]") == [low, high]
    page.get_by_text("Reset zoom", exact=True).click()
    until(page, "m.view.zoom === null")


def test_a_chosen_expert_is_chosen_for_all_twins(compare):
    page = compare(twins=THREE[:1])
    train(page, 20)
    box = small(page, "load", "B").bounding_box()
    width = box["width"] - 35
    page.mouse.click(box["x"] + 32 + (5.5 / 16) * width, box["y"] + 40)
    until(page, "m.view.expert === 5")
    expect(page.get_by_label("Expert", exact=True)).to_have_value("5")
    page.get_by_label("Expert", exact=True).select_option("none")
    until(page, "m.view.expert === -1")


def test_layers_are_chosen_for_all_charts(compare):
    page = compare(twins=THREE[:1], layers="2")
    train(page, 30)
    _, rows = on_server(page)
    page.get_by_label("Layer").select_option("1")
    until(page, "m.view.layer === 1")
    for name in "AB":
        value = fixed(rows[name]["max_vio"][-1, 1], 2)
        expect(head(page, name).locator("dd").nth(1)).to_have_text(value)
    assert look(page, "columns.get(1).panels[0].now.loads") == rows["B"]["load"][-1, 16:].tolist()


def test_a_twin_that_diverges_says_so_and_the_others_go_on(compare):
    page = compare(twins=[{"learning_rate": 1e30}, {"u": 0.03}])
    train(page, 40)
    expect(head(page, "B")).to_contain_text("Training diverged at step")
    expect(head(page, "B")).to_have_class(re.compile("still"))
    expect(head(page, "C")).not_to_have_class(re.compile("still"))
    assert look(page, "twins[1].store.lastStep") < 5
    assert look(page, "twins[0].store.lastStep") == look(page, "twins[2].store.lastStep") >= 40
    assert look(page, "lastError") == ""


def test_a_run_alone_says_how_to_add_a_twin_and_one_that_comes_gets_a_column(compare):
    page = compare()
    expect(page.get_by_text("A is alone. Add a twin")).to_be_visible()
    train(page, 80)
    button(page, "Add twin").click()
    until(page, "m.twins.length === 2 && m.twins[1].store.lastStep === m.step")
    expect(page.get_by_text("A is alone.")).to_be_hidden()
    expect(head(page, "B")).to_contain_text("gating sigmoid → softmax")
    _, rows = on_server(page)
    assert look(page, "columns.get(1).panels[0].now.loads") == rows["B"]["load"][-1].tolist()


def test_a_twin_that_goes_leaves_the_others_their_letters_and_looks(compare):
    page = compare(twins=THREE)
    train(page, 20)
    button(page, "Remove B").click()
    until(page, "m.twins.length === 3")
    expect(page.locator("article.twin .letter")).to_have_text([re.compile("A"), re.compile("C"), re.compile("D")])
    expect(page.locator("article.twin").nth(1)).to_have_attribute("data-look", "C")
    button(page, "Add twin").click()
    until(page, "m.twins.length === 4")
    expect(page.locator("article.twin").nth(3)).to_have_attribute("data-look", "B")
    columns = page.locator(".small[data-chart=load]").evaluate_all(
        "nodes => nodes.map(node => node.dataset.look).join('')"
    )
    assert columns == "ACDB"


def test_another_beginning_starts_all_twins_anew(compare):
    page = compare(twins=THREE[:1])
    train(page, 30)
    button(page, "Reset").click()
    until(page, "m.epoch === 2 && m.step === 0 && m.twins.length === 2")
    train(page, 10)
    _, rows = on_server(page)
    assert look(page, "twins[1].store.count") == len(rows["B"]["step"])


def test_charts_say_in_words_what_they_show(compare):
    page = compare(twins=THREE[:1])
    train(page, 30)
    step = look(page, "step")
    expect(small(page, "load", "B")).to_have_attribute(
        "aria-label", re.compile(rf"Twin B\. Expert load at step {step}:")
    )
    expect(small(page, "history", "A")).to_have_attribute("aria-label", re.compile(r"Twin A\. Load history of 16"))
    expect(plot(page, "loss")).to_have_attribute("aria-label", re.compile(rf"at step {step}: A [\d.]+, B [\d.]+\."))
    expect(page.get_by_role("article", name="Twin B: u 0.003 → 0.03")).to_be_visible()


def test_columns_are_chosen_by_keyboard(compare):
    page = compare(twins=THREE[:1])
    letter = page.get_by_role("button", name="■ B", exact=True)
    letter.focus()
    page.keyboard.press("Space")
    expect(letter).to_have_attribute("aria-pressed", "true")
    assert look(page, "view.twin") == 1
    page.get_by_role("slider", name="Step shown").focus()
    page.keyboard.press("Space")
    page.get_by_role("heading", name="Task loss").click()
    page.keyboard.press("Escape")
    steps = look(page, "step")
    assert not look(page, "playing"), "keys for our controls are not the page's shortcuts"
    page.keyboard.press("Space")
    until(page, f"m.step > {steps}")


@pytest.mark.parametrize("size", [(1024, 768), (390, 844)])
def test_nothing_is_wider_than_the_window(compare, size):
    page = compare(size, "dark", twins=THREE)
    train(page, 20)
    assert page.evaluate(
        "document.querySelector('.moeviz').scrollWidth <= document.querySelector('.moeviz').clientWidth"
    )
    for name in "ABCD":
        box = small(page, "load", name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0]
        ratio = small(page, "load", name).evaluate("p => p.querySelector('canvas').width / p.clientWidth")
        assert ratio == pytest.approx(1, abs=0.02), "painted at its own size"


def slide_to(page, step):
    """Move the time bar to a step by keyboard, from its end."""
    slider = page.get_by_role("slider", name="Step shown")
    slider.focus()
    last = look(page, "step")
    for _ in range(last - step):
        page.keyboard.press("ArrowLeft")
    until(page, f"m.view.at === {step}")


def test_every_panel_shows_the_moment_that_is_chosen(compare):
    page = compare(twins=THREE[:1])
    train(page, 30)
    _, rows = on_server(page)
    step = look(page, "step") - 12
    slide_to(page, step)
    expect(page.get_by_text(f"Expert load at step {step}")).to_be_visible()
    for place, name in enumerate("AB"):
        index = np.flatnonzero(rows[name]["step"][:, 0] == step)[0]
        assert look(page, f"columns.get({place}).panels[0].now.loads") == rows[name]["load"][index].tolist()
        expect(head(page, name).locator("dd").nth(1)).to_have_text(fixed(rows[name]["max_vio"][index, 0], 2))
    share = rows["B"]["routed_differently"][np.flatnonzero(rows["B"]["step"][:, 0] == step)[0], 0]
    read = plot(page, "routed").locator(".readout").inner_text().splitlines()
    assert read[0] == f"step {step}"
    assert float(read[1].split()[1]) == pytest.approx(100 * share, abs=0.5)
    page.get_by_role("button", name="Live", exact=True).click()
    until(page, "m.view.at === null")
    expect(page.get_by_text("Expert load now")).to_be_visible()


def test_before_they_parted_twins_were_identical(compare):
    page = compare(twins=[{"u": 0.03}])
    train(page, 8)
    parted = on_server(page)[0]["twins"][1]["parted"]["step"]
    slide_to(page, parted - 1)
    steps = f"{parted - 1} step" + ("" if parted == 2 else "s")
    expect(head(page, "B").locator(".clock")).to_have_text(f"identical so far: {steps}")
    assert numbers(page, "A") == numbers(page, "B")


def test_a_branch_begins_at_the_step_and_from_the_twin_that_are_chosen(compare):
    page = compare(twins=THREE[:1])
    train(page, 20)
    expect(page.get_by_role("button", name="Branch from A here")).to_be_hidden()
    step = look(page, "step") - 5
    slide_to(page, step)
    page.get_by_role("button", name="■ B", exact=True).click()
    page.get_by_role("button", name="Branch from B here", exact=True).click()
    expect(page.get_by_text(f'Branch: {{"step": {step}, "twin": 1}}')).to_be_visible()


def test_a_branch_has_no_past_before_it_began(compare):
    page = compare()
    train(page, 30)
    page.get_by_label("Since").fill("20")
    page.get_by_label("Since").press("Enter")
    browsing.settle(page)
    button(page, "Add twin").click()
    until(page, "m.twins.length === 2 && m.twins[1].store.lastStep === m.step")
    expect(head(page, "B")).to_contain_text("gating sigmoid → softmax, from A at step 20")
    assert look(page, "twins[1].store.step[0]") == 20
    slide_to(page, 15)
    expect(head(page, "B").locator(".clock")).to_have_text("had not begun by then")
    assert set(numbers(page, "B").values()) == {"–"}
    assert look(page, "lastError") == ""


def test_smoothing_is_chosen_for_all_twins(compare):
    page = compare(twins=THREE[:1])
    train(page, 30)
    _, rows = on_server(page)
    page.get_by_role("button", name="Charts").click()
    page.get_by_role("slider", name="Smoothing").fill("0")
    page.keyboard.press("Escape")
    step = hover_share(page, "max_vio", 0.5)
    read = plot(page, "max_vio").locator(".readout").inner_text().splitlines()
    for line, name in zip(read[1:], "AB", strict=True):
        index = np.flatnonzero(rows[name]["step"][:, 0] == step)[0]
        assert float(line.split()[1]) == pytest.approx(rows[name]["max_vio"][index, 0], rel=0.01)


def test_every_chart_can_be_saved(compare):
    page = compare(twins=THREE[:1])
    train(page, 10)
    for chart in ("Expert load now, twin B", "Load history, twin A", "MaxVio"):
        for kind, begin in (("PNG", b"\x89PNG"), ("SVG", b"<svg")):
            page.get_by_role("button", name="Charts").click()
            page.get_by_label("Chart to save").select_option(label=chart)
            with page.expect_download() as download:
                page.get_by_role("button", name=f"Save as {kind}").click()
            content = download.value.path().read_bytes()
            assert content.startswith(begin), chart
            assert len(content) > 1000, chart
            page.keyboard.press("Escape")
