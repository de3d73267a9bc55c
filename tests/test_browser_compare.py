"""The charts of twins in a real browser, beside the numbers that the server has of the same run."""

from __future__ import annotations

import re

import numpy as np
import pytest
from playwright.sync_api import expect

from moeviz.toy import TrainingDiverged
from tests.browsing import drag, drawn, fixed, look, until
from tests.charts_alone import catch_up, new_run, train_to

pytestmark = pytest.mark.browser
THREE = [{"u": 0.03}, {"gating": "softmax"}, {"bias_rule": "none"}]
SHARED = ["max_vio", "loss", "difference", "spread", "dropped", "routed"]


@pytest.fixture
def compare(show):
    """Trains a run with twins to a step and opens its charts; gives the page and the run."""

    def open_page(twins=(), step=0, **settings):
        run = new_run(twins, step, **{"bias_rule": "sign"} | settings)
        return show(run, "twins"), run

    return open_page


@pytest.fixture(scope="module")
def four_trained():
    """Four twins at step 60, for tests that only look."""
    return new_run(THREE, 60, bias_rule="sign")


@pytest.fixture
def four(show, four_trained):
    """A page that shows them, and what the run recorded."""
    return show(four_trained, "twins"), rows_of(four_trained)


def rows_of(run):
    """By name of a twin its rows."""
    return {twin.name: twin.history.since(-1)[1] for twin in run.twins}


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


def readout(page, chart):
    """What a shared chart says beside the pointer, line by line."""
    return plot(page, chart).locator(".readout").inner_text().splitlines()


def slide_to(page, step):
    """Move the time bar to a step by keyboard, from its end."""
    slider = page.get_by_role("slider", name="Step shown")
    slider.focus()
    last = look(page, "step")
    for _ in range(last - step):
        page.keyboard.press("ArrowLeft")
    until(page, f"m.view.at === {step}")
    drawn(page)


def test_each_column_shows_the_numbers_that_the_server_has(four):
    page, rows = four
    for place, name in enumerate("ABCD"):
        newest = rows[name][-1]
        assert newest["step"] == look(page, f"twins[{place}].store.lastStep") == 60
        assert look(page, f"columns.get({place}).panels[0].now.loads") == newest["load"][0].tolist()
        heldout = rows[name]["eval_loss"][np.isfinite(rows[name]["eval_loss"])][-1]
        assert numbers(page, name) == {
            "held-out": fixed(heldout, 3),
            "MaxVio": fixed(newest["max_vio"][0], 2),
            "dead": f"{newest['dead_experts'][0]} / 16",
            "dropped": "0 %",
        }
    assert numbers(page, "A") != numbers(page, "D"), "twins with different settings differ by now"
    expect(page.locator(".moeviz .notice")).to_be_hidden()


def test_columns_are_aligned_share_their_scale_and_fit_the_window(four):
    page, _ = four
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


def test_pointing_at_one_chart_marks_the_step_on_all_and_reads_every_twin(four):
    page, rows = four
    step = hover_share(page, "routed", 0.5)
    assert 10 < step < 60
    for name in SHARED:
        expect(plot(page, name).locator(".cursor")).to_be_visible()
        if name != "dropped":  # there a sentence says that dropping is off
            expect(plot(page, name).locator(".readout")).to_contain_text(f"step {step}")
    for name in "ABCD":
        expect(small(page, "history", name).locator(".cursor")).to_be_visible()
        expect(small(page, "history", name).locator(".readout")).to_be_hidden()
    read = readout(page, "routed")
    assert [line.split()[0] for line in read[1:]] == list("BCD")
    for line, name in zip(read[1:], "BCD", strict=True):
        assert float(line.split()[1]) == pytest.approx(100 * rows[name]["routed_differently"][step], abs=0.5)
    for line, name in zip(readout(page, "spread")[1:], "ABCD", strict=True):
        bias = rows[name]["bias"][step]
        assert float(line.split()[1]) == pytest.approx(bias.max() - bias.min(), rel=0.01, abs=1e-4)


def smoothed(values, step):
    """The mean of all values up to a step, each counting 15/16 of the next one."""
    weights = [(15 / 16) ** (step - age) for age in range(step + 1)]
    return sum(weight * float(value) for weight, value in zip(weights, values, strict=False)) / sum(weights)


def test_the_difference_is_the_twin_minus_the_base(four):
    page, rows = four
    for figure, column in (("MaxVio", "max_vio"), ("task loss", "task_loss")):
        page.get_by_label("Figure").select_option(label=figure)
        step = hover_share(page, "difference", 0.6)
        drawn(page)
        base = smoothed(rows["A"][column].ravel(), step)
        for line, name in zip(readout(page, "difference")[1:], "BCD", strict=True):
            expected = smoothed(rows[name][column].ravel(), step) - base
            said = float(line.split()[1].replace("−", "-"))
            assert said == pytest.approx(expected, rel=0.02, abs=2e-4), figure
    expect(plot(page, "difference")).to_have_attribute("aria-label", re.compile("Difference from A, .* at step"))


def test_smoothing_is_chosen_for_all_twins(four):
    page, rows = four
    page.get_by_role("button", name="Charts").click()
    page.get_by_role("slider", name="Smoothing").fill("0")
    page.keyboard.press("Escape")
    step = hover_share(page, "max_vio", 0.5)
    drawn(page)
    for line, name in zip(readout(page, "max_vio")[1:], "ABCD", strict=True):
        assert float(line.split()[1]) == pytest.approx(rows[name]["max_vio"][step, 0], rel=0.01)


def test_charts_say_in_words_what_they_show(four):
    page, _ = four
    expect(small(page, "load", "B")).to_have_attribute("aria-label", re.compile(r"Twin B\. Expert load at step 60:"))
    expect(small(page, "history", "A")).to_have_attribute("aria-label", re.compile(r"Twin A\. Load history of 16"))
    expect(plot(page, "loss")).to_have_attribute("aria-label", re.compile(r"at step 60: A [\d.]+, B [\d.]+, C"))
    expect(page.get_by_role("article", name="Twin B: u 0.003 → 0.03")).to_be_visible()


def test_every_panel_shows_the_moment_that_is_chosen(four):
    page, rows = four
    slide_to(page, 48)
    expect(page.get_by_text("Expert load at step 48")).to_be_visible()
    for place, name in enumerate("ABCD"):
        then = rows[name][48]
        assert look(page, f"columns.get({place}).panels[0].now.loads") == then["load"][0].tolist()
        expect(head(page, name).locator("dd").nth(1)).to_have_text(fixed(then["max_vio"][0], 2))
    read = readout(page, "routed")
    assert read[0] == "step 48"
    assert float(read[1].split()[1]) == pytest.approx(100 * rows["B"]["routed_differently"][48], abs=0.5)

    expect(page.get_by_role("button", name="Branch from A here")).to_be_visible()
    page.get_by_role("button", name="■ B", exact=True).click()
    page.get_by_role("button", name="Branch from B here", exact=True).click()
    assert page.evaluate("told") == [["branch", {"step": 48, "twin": 1}]]
    page.get_by_role("button", name="Live", exact=True).click()
    until(page, "m.view.at === null")
    expect(page.get_by_text("Expert load now")).to_be_visible()
    expect(page.get_by_role("button", name="Branch from B here")).to_be_hidden()


def test_every_chart_can_be_saved(four):
    page, _ = four
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


def test_columns_are_chosen_by_keyboard_and_keep_their_keys_to_themselves(four):
    page, _ = four
    letter = page.get_by_role("button", name="■ B", exact=True)
    letter.focus()
    page.keyboard.press("Space")
    expect(letter).to_have_attribute("aria-pressed", "true")
    assert look(page, "view.twin") == 1
    page.get_by_role("slider", name="Step shown").focus()
    page.keyboard.press("Space")
    page.get_by_role("heading", name="Task loss").click()
    page.keyboard.press("Home")
    assert page.evaluate("keys") == ["Home"], "keys for our controls are not the page's shortcuts"


@pytest.mark.parametrize("size", [(1024, 768), (390, 844)])
def test_nothing_is_wider_than_the_window(show, four_trained, size):
    page = show(four_trained, "twins", size=size, scheme="dark")
    assert page.evaluate(
        "document.querySelector('.moeviz').scrollWidth <= document.querySelector('.moeviz').clientWidth"
    )
    for name in "ABCD":
        box = small(page, "load", name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0]
        ratio = small(page, "load", name).evaluate("p => p.querySelector('canvas').width / p.clientWidth")
        assert ratio == pytest.approx(1, abs=0.02), "painted at its own size"


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
    page, run = compare([{"gating": "softmax"}], 100)
    rows = rows_of(run)
    for step in range(60, 100, 8):
        page.evaluate("step => window.__moeviz.view.set({ at: step })", step)
        drawn(page)
        top = look(page, "scale[1]")
        highest = {}
        for name in "AB":
            load = rows[name]["load"][step, 0]
            busiest = int(load.argmax())
            highest[name] = load[busiest]
            assert painted_height(page, name, busiest) == pytest.approx(load[busiest] / top, abs=0.04)
        assert highest["B"] < 0.8 * highest["A"], "a scale of its own would show"


def test_headings_say_what_differs_and_where_twins_parted(compare):
    page, run = compare([{"u": 0.03}, {"u": 0.003}], 30)
    rows = rows_of(run)
    expect(head(page, "A")).to_contain_text("base")
    expect(head(page, "B")).to_contain_text("u 0.003 → 0.03")
    expect(head(page, "C")).to_contain_text("no difference yet")
    step, token = run.twins[1].parted
    assert step == np.flatnonzero(rows["B"]["routed_differently"] > 0)[0], "the clock is the first step of the column"
    said = rf"parted at step {step}, token {token} · ([\d.]+) % differ now"
    expect(head(page, "B").locator(".clock")).to_have_text(re.compile(said))
    shown = float(re.search(said, head(page, "B").locator(".clock").inner_text()).group(1))
    assert shown == pytest.approx(100 * rows["B"]["routed_differently"][30], abs=0.5)
    expect(head(page, "C").locator(".clock")).to_have_text("identical so far: 30 steps")
    assert (rows["C"]["routed_differently"] == 0).all()
    assert np.isnan(rows["A"]["routed_differently"]).all()
    slide_to(page, step - 1)
    steps = f"{step - 1} step" + ("" if step == 2 else "s")
    expect(head(page, "B").locator(".clock")).to_have_text(f"identical so far: {steps}")
    assert numbers(page, "A") == numbers(page, "B")


def test_zoom_is_shared_and_stays_while_training_goes_on(compare):
    page, run = compare(THREE[:1], 60)
    box = plot(page, "loss").bounding_box()
    left, right = box["x"] + 42, box["x"] + box["width"] - 26
    middle = box["y"] + 0.5 * box["height"]
    drag(page, (left + 0.3 * (right - left), middle), (left + 0.6 * (right - left), middle))
    until(page, "m.view.zoom !== null")
    low, high = look(page, "view.zoom")
    assert 10 < low < high < 60
    run.playing = True
    train_to(page, run, 80)
    assert look(page, "view.zoom") == [low, high]
    page.wait_for_function(
        "window.__moeviz.charts.every(c => c.axisNow[0].join() === window.__moeviz.view.zoom.join())"
    )
    assert look(page, "columns.get(1).panels[1].axisNow[0]") == [low, high]
    page.get_by_text("Reset zoom", exact=True).click()
    until(page, "m.view.zoom === null")


def test_a_chosen_expert_is_chosen_for_all_twins(compare):
    page, _ = compare(THREE[:1], 2)
    box = small(page, "load", "B").bounding_box()
    width = box["width"] - 35
    page.mouse.click(box["x"] + 32 + (5.5 / 16) * width, box["y"] + 40)
    until(page, "m.view.expert === 5")
    expect(page.get_by_label("Expert", exact=True)).to_have_value("5")
    page.get_by_label("Expert", exact=True).select_option("none")
    until(page, "m.view.expert === -1")


def test_layers_are_chosen_for_all_charts(compare):
    page, run = compare(THREE[:1], 5, recipe={"num_layers": 2})
    rows = rows_of(run)
    page.get_by_label("Layer").select_option("1")
    until(page, "m.view.layer === 1")
    for name in "AB":
        expect(head(page, name).locator("dd").nth(1)).to_have_text(fixed(rows[name]["max_vio"][-1, 1], 2))
    assert look(page, "columns.get(1).panels[0].now.loads") == rows["B"]["load"][-1, 1].tolist()


def test_a_twin_that_diverges_says_so_and_the_others_go_on(compare):
    page, run = compare([{"gating": "softmax"}, {"u": 0.03}], 2)
    run.twins[1].record(TrainingDiverged("Training diverged at step 3: the loss is NaN."))
    train_to(page, run, 10)
    expect(head(page, "B")).to_contain_text("Training diverged at step 3")
    expect(head(page, "B")).to_have_class(re.compile("still"))
    expect(head(page, "C")).not_to_have_class(re.compile("still"))
    assert look(page, "twins[1].store.lastStep") == 2
    assert look(page, "twins[0].store.lastStep") == look(page, "twins[2].store.lastStep") == 10
    expect(page.locator(".moeviz .notice")).to_be_hidden()


def test_a_run_alone_says_how_to_add_a_twin_and_one_that_comes_gets_a_column(compare):
    page, run = compare(step=10)
    expect(page.get_by_text("A is alone. Add a twin")).to_be_visible()
    run.add_twin({"gating": "softmax"})
    catch_up(page, run)
    expect(page.get_by_text("A is alone.")).to_be_hidden()
    expect(head(page, "B")).to_contain_text("gating sigmoid → softmax")
    assert look(page, "columns.get(1).panels[0].now.loads") == rows_of(run)["B"]["load"][-1, 0].tolist()


def test_a_twin_that_goes_leaves_the_others_their_letters_and_looks(compare):
    page, run = compare(THREE, 5)
    run.remove_twin(1)
    catch_up(page, run)
    expect(page.locator("article.twin .letter")).to_have_text([re.compile("A"), re.compile("C"), re.compile("D")])
    expect(page.locator("article.twin").nth(1)).to_have_attribute("data-look", "C")
    run.add_twin({"gating": "softmax"})
    catch_up(page, run)
    expect(page.locator("article.twin").nth(3)).to_have_attribute("data-look", "B")
    columns = page.locator(".small[data-chart=load]").evaluate_all(
        "nodes => nodes.map(node => node.dataset.look).join('')"
    )
    assert columns == "ACDB"


def test_another_beginning_starts_all_twins_anew(compare):
    page, run = compare(THREE[:1], 12)
    run.reset()
    catch_up(page, run)
    assert look(page, "step") == 0
    train_to(page, run, 10)
    assert look(page, "twins[1].store.count") == len(rows_of(run)["B"]) == 11


def test_a_branch_has_no_past_before_it_began(compare):
    page, run = compare(step=12)
    run.add_twin({"gating": "softmax"}, since=8)
    catch_up(page, run)
    expect(head(page, "B")).to_contain_text("gating sigmoid → softmax, from A at step 8")
    assert look(page, "twins[1].store.step[0]") == 8
    slide_to(page, 5)
    expect(head(page, "B").locator(".clock")).to_have_text("had not begun by then")
    assert set(numbers(page, "B").values()) == {"–"}
    expect(page.locator(".moeviz .notice")).to_be_hidden()
