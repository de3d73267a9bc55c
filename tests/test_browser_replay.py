"""A replay in a real browser, from a disk and without a network: the same numbers as the run, and it plays."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from playwright.sync_api import expect

from moeviz import export
from moeviz.config import Knobs, Recipe
from moeviz.live import replay
from tests import browsing
from tests.browsing import PAGES, SECOND, button, fixed, look, watched_pages
from tests.test_live import make_rows
from tests.test_replay import HOSTILE, told_in

pytestmark = pytest.mark.browser
TILES = ("step", "loss", "max_vio", "dead", "dropped", "groups", "speed")
SWITCHED_AT = 60  # to other knobs
STEPS = 150


@pytest.fixture(scope="module")
def recorded():
    """Steps of two layers whose knobs change on the way."""
    before, after = Knobs(), Knobs(bias_rule="sign", u=0.01, token_dropping="expert", num_groups=4, groups_kept=2)
    rows = make_rows(2, 16, STEPS + 1, "as many")
    rows["step"] = np.arange(STEPS + 1)
    rows["version"] = rows["step"] >= SWITCHED_AT
    early = rows[:SWITCHED_AT]
    early["kept_load"], early["dropped_fraction"], early["fan_out"] = early["load"], 0, 1
    label = "bias_rule none → sign; num_groups 1 → 4"
    return replay.Recorded(Recipe(num_layers=2, seed=3), after, rows, [(1, label)], {0: before, 1: after})


@pytest.fixture
def open_replay(watch, tmp_path):
    """Opens a replay from the disk, offline; a warning or any request fails the test too."""

    def open_file(content, **options):
        return opened_from(tmp_path / "replay.html", content, watch, **options)

    return open_file


def opened_from(path, content, watch, **options):
    path.write_bytes(content)
    page = watch(path.as_uri(), ("error", "warning"), offline=True, **options)
    page.goto(path.as_uri())
    until(page, "m?.complete")
    return page


@pytest.fixture(scope="module")
def shared(browser, recorded, tmp_path_factory):
    """One page with two runs, for all who only look and press."""
    other = replay.Recorded(Recipe(), Knobs(), recorded.rows[:80], name="B", note="u 0.003 → 0.1")
    content = replay.html([recorded, other], title="A run", date="2026-11-22", receipt="hash 1234")
    with watched_pages(browser, "replay") as watch:
        yield opened_from(tmp_path_factory.mktemp("replay") / "shared.html", content, watch), watch


@pytest.fixture
def page(shared, request):
    """The shared page as it is at its beginning."""
    page, request.node.stash[PAGES] = shared
    page.evaluate("document.activeElement.blur()")
    if look(page, "playing"):
        page.keyboard.press("Space")
    for menu in ("Run", "Layer"):
        page.get_by_role("combobox", name=menu).select_option("0")
    page.keyboard.press("Home")
    until(page, f"!m.playing && m.step === 0 && m.view.layer === 0 && m.store.lastStep === {STEPS}")
    return page


def until(page, condition):
    """Wait for a condition on `m`, what the replay shows. (Playwright's own way needs eval, which a replay forbids.)"""
    page.evaluate(
        f"""() => new Promise((done, fail) => {{
            const began = performance.now()
            const holds = (m) => {condition}
            const look = () => {{
                if (holds(window.__moeviz)) done()
                else if (performance.now() - began > {60 * SECOND}) fail(new Error({json.dumps(condition)}))
                else setTimeout(look, 10)
            }}
            look()
        }})"""
    )


def go_to(page, step):
    """Scrub there, as a finger on the slider does."""
    page.get_by_role("slider", name="Step shown").fill(str(step))
    until(page, f"m.step === {step}")


def shown(page):
    """The large number of each tile."""
    values = page.locator(".tile .value").all_text_contents()
    return dict(zip(TILES, values, strict=True))


def expected(rows, step, layer):
    """What the tiles must say, from the run's rows."""
    [i] = np.flatnonzero(rows["step"] == step)
    held_out = [loss for loss in rows["eval_loss"][: i + 1].tolist() if loss == loss]
    dropped = 100 * rows["dropped_fraction"][i, layer]
    fan_out = rows["fan_out"][i, layer]
    return {
        "step": str(step),
        "loss": fixed(held_out[-1], 3) if held_out else "–",
        "max_vio": fixed(rows["max_vio"][i, layer], 2),
        "dead": f"{rows['dead_experts'][i, layer]} / 16",
        "dropped": f"{fixed(dropped, 0)} %" if dropped == 0 or dropped >= 9.95 else f"{fixed(dropped, 1)} %",
        "groups": fixed(fan_out, 2) if step >= SWITCHED_AT else fixed(fan_out, 0),
    }


def test_offline_it_shows_the_numbers_of_the_run(page, recorded):
    seen = []
    for layer, step in ((0, 100), (0, 59), (0, 60), (1, 60), (1, STEPS), (1, 0)):
        page.get_by_role("combobox", name="Layer").select_option(str(layer))
        go_to(page, step)
        tiles = shown(page)
        assert float(tiles.pop("speed").replace("−", "-")) >= 0
        assert tiles == expected(recorded.rows, step, layer)
        loads = recorded.rows["load"][step, layer].tolist()
        assert look(page, "loads") == loads
        seen.append(loads)
        words = page.locator("[data-chart=load] .plot")
        expect(words).to_have_attribute(
            "aria-label", re.compile(f"at step {step}: expert {np.argmax(loads)} is busiest")
        )
    assert len({str(loads) for loads in seen}) == len(seen)


def test_marks_and_settings_are_those_of_the_run(page):
    expect(page.get_by_role("heading", name="A run")).to_be_visible()
    expect(page.get_by_text(f"2026-11-22 · steps 0 to {STEPS}", exact=True)).to_be_visible()
    assert look(page, "marks") == [{"step": SWITCHED_AT, "label": "bias_rule none → sign; num_groups 1 → 4"}]
    page.get_by_text("Settings", exact=True).click()
    expect(page.get_by_text("hash 1234")).to_be_visible()
    setting = page.locator(".settings dl > div", has_text="num_groups")
    go_to(page, 20)
    expect(setting.locator("dd")).to_have_text("1")
    go_to(page, 80)
    expect(setting.locator("dd")).to_have_text("4")
    assert page.locator(".settings .changed", has_text="seed").count() == 1
    assert page.locator(".settings .changed", has_text="d_model").count() == 0


def test_it_plays_pauses_and_ends_and_keys_reach_it_past_focused_controls(page):
    """What the player makes of time and keys, its own test knows; here are the browser's frames, focus and controls."""
    button(page, "Play").click()
    until(page, "m.playing && m.step > 1")
    drawn = look(page, "drawn")
    until(page, f"m.step > 2 && m.drawn > {drawn}")
    page.keyboard.press("Space")  # the focus is on the button, which was clicked
    until(page, "!m.playing")
    at = look(page, "step")
    expect(page.get_by_text(f"step {at} of {STEPS}")).to_be_visible()
    page.keyboard.press("ArrowRight")
    until(page, f"m.step === {at + 1}")
    page.get_by_role("slider", name="Step shown").focus()
    page.keyboard.press("ArrowRight")
    until(page, f"m.step === {at + 2}")
    page.get_by_role("combobox", name="Layer").focus()
    page.keyboard.press("ArrowDown")
    until(page, f"m.view.layer === 1 && m.step === {at + 2}")
    button(page, "16 times").click()
    page.get_by_role("slider", name="Step shown").focus()
    page.keyboard.press("Space")
    until(page, f"!m.playing && m.step === {STEPS}")


def test_several_runs_are_chosen_from_a_menu(page):
    go_to(page, 120)
    page.get_by_role("combobox", name="Run").select_option(label="B: u 0.003 → 0.1")
    until(page, "m.store.lastStep === 79 && m.step === 79")


def test_a_chart_can_be_saved_from_it(page):
    go_to(page, 70)
    for form, beginning in (("PNG", b"\x89PNG"), ("SVG", b"<svg")):
        page.locator("[data-chart=loss] .plot").hover()
        with page.expect_download() as saved:
            page.locator(f"[data-chart=loss] [data-title='Download as {form}']").click()
        assert saved.value.path().read_bytes().startswith(beginning)
        assert "loss" in saved.value.suggested_filename
        assert "70" in saved.value.suggested_filename
    button(page, "Charts").click()
    expect(page.get_by_text("Log steps")).to_be_visible()
    expect(page.get_by_text("Pause drawing")).to_be_hidden()
    page.keyboard.press("Escape")


def test_it_follows_the_readers_colours_and_width(open_replay, recorded):
    page = open_replay(
        replay.html([recorded], title="A run"), color_scheme="dark", viewport={"width": 390, "height": 844}
    )
    assert page.locator(".moeviz").get_attribute("data-theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 23)"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.emulate_media(color_scheme="light")
    expect(page.locator(".moeviz")).to_have_attribute("data-theme", "light")


def test_what_people_wrote_never_runs(watch, tmp_path, recorded):
    """Without Plotly.js, which is read last and takes a second: all that people wrote is on the page before it."""
    path = tmp_path / "hostile.html"
    page = watch(path.as_uri(), ("error", "warning"), offline=True)
    for text in HOSTILE:
        hostile = replay.Recorded(recorded.recipe, recorded.knobs, recorded.rows, [(1, text)], name=text, note=text)
        content = replay.html([hostile, hostile], title=text, date=text, receipt=text)
        path.write_bytes(content.rpartition(b"<script>")[0])
        page.goto(path.as_uri())
        until(page, "m?.drawn")
        assert page.title().split() == text.split()
        page.get_by_text("Settings", exact=True).click()
        page.locator("[data-chart=loss] .plot").hover()
        assert look(page, "marks[0].label") == text
        assert page.locator(".about h1").text_content() == text
        assert page.locator(".receipt").text_content() == text
        assert page.evaluate("window.__broken") is None, text
        assert page.locator("img").count() == 0, text


def test_a_damaged_file_says_so(watch, tmp_path, recorded):
    content = replay.html([recorded], title="A run")
    message = re.search(rb'"message":"(.{40})', content)[1]
    path = tmp_path / "damaged.html"
    path.write_bytes(content.replace(message, b"A" * 40))
    page = watch(path.as_uri(), ("error", "warning"), offline=True)
    page.goto(path.as_uri())
    expect(page.get_by_role("status")).to_contain_text("cannot be read: the file is damaged", timeout=60 * SECOND)


def test_the_playground_gives_what_it_shows(new_page, open_replay):
    page = new_page("?seed=5")
    browsing.train(page, 40)
    button(page, "download icon").click()
    step = int(re.search(r"Up to step (\d+)\.", page.get_by_text("Up to step").inner_text())[1])
    browsing.until(page, f"m.step === {step}")
    loads, files = look(page, "bars"), {}
    for label in ("Replay", "Steps as CSV", "Steps as Parquet", "Settings as JSON"):
        with page.expect_download() as saved:
            button(page, label).click()
        name = saved.value.suggested_filename
        assert name.startswith(f"moeviz-no_balancing-seed5-step{step}.")
        files[name.rpartition(".")[2]] = saved.value.path().read_bytes()
    _, [(_, columns)] = told_in(files["html"])
    assert columns["step"].ravel().tolist() == list(range(step + 1))
    assert columns["load"][-1].tolist() == loads
    table = pyarrow.parquet.read_table(io.BytesIO(files["parquet"]))
    assert [table[f"load_l0_e{expert}"][-1].as_py() for expert in range(16)] == loads
    assert pyarrow.csv.read_csv(io.BytesIO(files["csv"])).num_rows == step + 1
    assert export.read_settings(files["json"]) == (Recipe(seed=5), Knobs())
    assert json.loads(files["json"])["steps"] == step
    played = open_replay(files["html"])
    played.keyboard.press("End")
    until(played, f"m.step === {step}")
    assert look(played, "loads") == loads
    assert shown(played)["max_vio"] == page.locator(".tile .value").nth(2).text_content()
