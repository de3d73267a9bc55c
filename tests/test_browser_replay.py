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
from tests.browsing import SECOND, button, fixed, look
from tests.test_replay import HOSTILE, told_in

pytestmark = pytest.mark.browser
TILES = ("step", "loss", "max_vio", "dead", "dropped", "groups", "speed")
SWITCHED_AT = 60  # to other knobs
STEPS = 150


@pytest.fixture(scope="module")
def trained():
    """A real run of two layers whose knobs change on the way."""
    from moeviz.engine import Engine
    from moeviz.snapshot import History

    recipe = Recipe(num_layers=2, seed=3, device="cpu")
    before = Knobs()
    after = Knobs(bias_rule="sign", u=0.01, token_dropping="expert", num_groups=4, groups_kept=2)
    engine, history = Engine(recipe, before), History(2, 16, STEPS + 2)
    history.append(engine.observe())
    for step in range(1, STEPS + 1):
        changed = step >= SWITCHED_AT
        history.append(engine.step(after if changed else before), version=int(changed))
    label = "bias_rule none → sign; num_groups 1 → 4"
    rows = history.since(-1)[1]
    return replay.Recorded(recipe, after, rows, [(1, label)], {0: before, 1: after})


@pytest.fixture
def open_replay(watch, tmp_path):
    """Opens replays from the disk, offline; a warning or any request fails the test too."""

    def open_file(content, **options):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.html"
        path.write_bytes(content)
        page = watch(path.as_uri(), ("error", "warning"), **{"offline": True} | options)
        page.goto(path.as_uri())
        until(page, "m?.complete")
        return page

    return open_file


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


@pytest.mark.parametrize("layer", [0, 1])
def test_offline_it_shows_the_numbers_of_the_run(open_replay, trained, layer):
    page = open_replay(replay.html([trained], title="A run"))
    page.get_by_role("combobox", name="Layer").select_option(str(layer))
    seen = []
    for step in (100, 0, 59, 60, STEPS):
        go_to(page, step)
        tiles = shown(page)
        assert float(tiles.pop("speed").replace("−", "-")) >= 0
        assert tiles == expected(trained.rows, step, layer)
        loads = trained.rows["load"][step, layer].tolist()
        assert look(page, "loads") == loads
        seen.append(loads)
        words = page.locator("[data-chart=load] .plot")
        expect(words).to_have_attribute(
            "aria-label", re.compile(f"at step {step}: expert {np.argmax(loads)} is busiest")
        )
    assert len({str(loads) for loads in seen}) == 5


def test_marks_and_settings_are_those_of_the_run(open_replay, trained):
    page = open_replay(replay.html([trained], title="A run", date="2026-11-22", receipt="hash 1234"))
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


def test_it_plays_pauses_and_ends(open_replay, trained):
    page = open_replay(replay.html([trained], title="A run"))
    button(page, "Play").click()
    until(page, "m.playing && m.step > 3")
    drawn = look(page, "drawn")
    until(page, f"m.step > 6 && m.drawn > {drawn}")
    page.keyboard.press("Space")  # the focus is on the button, which was clicked
    until(page, "!m.playing")
    at = look(page, "step")
    expect(page.get_by_text(f"step {at} of {STEPS}")).to_be_visible()
    button(page, "16 times").click()
    button(page, "Play").click()
    until(page, f"!m.playing && m.step === {STEPS}")
    button(page, "Play").click()  # from the beginning again
    until(page, f"m.playing && m.step < {STEPS}")


def test_speeds_are_what_they_say(open_replay, trained):
    """Steps over seconds of the browser's own clock, from frame to frame."""
    page = open_replay(replay.html([trained], title="A run"))
    for name, rate in (("1 times", 10), ("4 times", 40), ("16 times", 160)):
        page.keyboard.press("Home")
        button(page, name).click()
        measured = page.evaluate(
            """() => new Promise((done) => {
                document.querySelector(".play").click()
                const { performance } = window
                let from = null
                const look = () => {
                    const now = { step: window.__moeviz.step, at: performance.now() }
                    if (!from && now.step > 0) from = now
                    if (from && now.at - from.at > 700) {
                        document.querySelector(".play").click()
                        done((1000 * (now.step - from.step)) / (now.at - from.at))
                    } else requestAnimationFrame(look)
                }
                look()
            })"""
        )
        assert measured == pytest.approx(rate, rel=0.35), name


def test_the_keyboard_does_everything(open_replay, trained):
    page = open_replay(replay.html([trained], title="A run"))
    for key, step in (
        *(("End", STEPS), ("ArrowLeft", STEPS - 1), ("Shift+ArrowLeft", STEPS - 11), ("ArrowRight", STEPS - 10)),
        *(("Home", 0), ("ArrowLeft", 0), ("ArrowRight", 1), ("Shift+ArrowRight", 11)),
    ):
        page.keyboard.press(key)
        until(page, f"m.step === {step}")
    page.get_by_role("slider", name="Step shown").focus()
    page.keyboard.press("ArrowRight")
    until(page, "m.step === 12")
    page.keyboard.press("Space")
    until(page, "m.playing && m.step > 12")
    page.keyboard.press("Space")
    until(page, "!m.playing")
    page.keyboard.press("Home")
    page.get_by_role("combobox", name="Layer").focus()
    page.keyboard.press("ArrowDown")
    until(page, "m.view.layer === 1 && m.step === 0")


@pytest.mark.parametrize("text", HOSTILE)
def test_what_people_wrote_never_runs(open_replay, trained, text):
    hostile = replay.Recorded(trained.recipe, trained.knobs, trained.rows, [(1, text)], name=text, note=text)
    page = open_replay(replay.html([hostile, hostile], title=text, date=text, receipt=text))
    assert page.title().split() == text.split()
    page.get_by_text("Settings", exact=True).click()
    page.locator("[data-chart=loss] .plot").hover()
    assert look(page, "marks[0].label") == text
    assert page.locator(".about h1").text_content() == text
    assert page.locator(".receipt").text_content() == text
    assert page.evaluate("window.__broken") is None
    assert page.locator("img").count() == 0


def test_several_runs_are_chosen_from_a_menu(open_replay, trained):
    other = replay.Recorded(Recipe(), Knobs(), trained.rows[:80], name="B", note="u 0.003 → 0.1")
    page = open_replay(replay.html([trained, other], title="Two runs"))
    go_to(page, 120)
    page.get_by_role("combobox", name="Run").select_option(label="B: u 0.003 → 0.1")
    until(page, "m.store.lastStep === 79 && m.step === 79")


def test_it_follows_the_readers_colours_and_width(open_replay, trained):
    page = open_replay(
        replay.html([trained], title="A run"), color_scheme="dark", viewport={"width": 390, "height": 844}
    )
    assert page.locator(".moeviz").get_attribute("data-theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 23)"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.emulate_media(color_scheme="light")
    expect(page.locator(".moeviz")).to_have_attribute("data-theme", "light")


def test_a_chart_can_be_saved_from_it(open_replay, trained):
    page = open_replay(replay.html([trained], title="A run"))
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


def test_a_damaged_file_says_so(watch, tmp_path, trained):
    content = replay.html([trained], title="A run")
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
