"""Does a visitor find their run again, and nobody else's? The page as a script, on a host with a cheap engine."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from moeviz import presets
from moeviz.config import Knobs, Recipe
from moeviz.host import Host, Limits, Run
from moeviz.ui import controls, fields, finds, session, transport
from moeviz.ui import hosting as ui_hosting
from tests.test_host import close_runs, hosting, run_to, wait_until
from tests.test_survival import leave, put_aside

ROOT = Path(__file__).parent.parent
BROWSER = ["one browser"]  # whose turn it is to look at the page


@pytest.fixture(scope="module")
def shared_host() -> Iterator[Host]:
    with hosting(max_runs=40, max_tokens=40_000) as host:
        yield host


@pytest.fixture
def host(shared_host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    for module in (ui_hosting, session, controls):
        monkeypatch.setattr(module, "host", lambda: shared_host, raising=False)
    monkeypatch.setattr(session, "_browser", lambda: BROWSER[0])
    BROWSER[0] = "one browser"
    yield shared_host
    close_runs(shared_host)


def open_page(**address: str) -> AppTest:
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    at.query_params.update(address)
    at.run()
    assert not at.exception
    return at


def run_of(host: Host, at: AppTest) -> Run:
    return host.get(at.session_state["moeviz"].token)


def warnings(at: AppTest) -> str:
    return " ".join(warning.value for warning in at.warning)


def whispers(at: AppTest) -> str:
    return " ".join(toast.value for toast in at.toast)


def offer(at: AppTest) -> str:
    return " ".join(text.value for text in at.markdown if "earlier run" in text.value)


def address_of(at: AppTest) -> dict[str, str]:
    return {name: text if isinstance(text, str) else text[0] for name, text in at.query_params.items()}


def visited(host: Host, steps: int = 5, **address: str) -> tuple[AppTest, Run]:
    """A page whose run has trained, and belongs to the browser whose turn it is."""
    at = open_page(**address)
    run = run_of(host, at)
    assert run.claim(BROWSER[0])
    run_to(run, steps)
    return at, run


def test_a_reload_finds_the_run_and_its_settings(host: Host) -> None:
    _, run = visited(host, seed="3")
    run.set_knobs(replace(run.knobs, u=0.01, bias_rule="sign"))
    again = open_page(run=run.token)
    assert run_of(host, again) is run
    assert len({page.session_state["moeviz"].visit for page in (again, open_page(run=run.token))}) == 2
    assert run.state().step == 5
    assert again.select_slider(key="u").value == 0.01
    assert again.session_state["seed"] == 3
    assert not again.warning
    assert not offer(again)
    found = address_of(again)
    assert found["run"] == run.token
    assert (found["seed"], found["u"]) == ("3", "0.01")


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_the_address_says_what_the_run_has_and_a_reload_finds_nothing_else(host: Host, preset: str) -> None:
    at, run = visited(host)
    for name in ("loss_free", preset):
        at.selectbox(key="preset_choice").select(name).run()
    assert run.knobs == presets.preset(preset).knobs
    at.number_input(key="num_layers").set_value(2)
    at.button(key="restart_with").click().run()
    assert run.recipe == Recipe(num_layers=2)
    assert address_of(at) == fields.to_link(run.recipe, run.knobs)
    again = open_page(**address_of(at), run=run.token)
    assert run_of(host, again) is run
    assert not again.warning


def test_a_run_that_was_put_aside_is_found_as_well(host: Host) -> None:
    _, run = visited(host, steps=7)
    leave(run)
    wait_until(put_aside(run))
    again = run_of(host, open_page(run=run.token))
    assert again is not run
    assert (again.token, again.state().step) == (run.token, 7)


def test_the_runs_settings_win_over_the_address_and_that_is_said(host: Host) -> None:
    _, run = visited(host)
    at = open_page(run=run.token, seed="9", u="0.01")
    assert run_of(host, at) is run
    assert run.recipe == Recipe()
    assert run.state().epoch == 1, "nothing is lost"
    assert "remove run=… from it" in warnings(at)
    assert address_of(at) == {"run": run.token}


def test_a_copied_address_gives_the_settings_and_not_the_run(host: Host) -> None:
    _, run = visited(host, gating="softmax", seed="4")
    BROWSER[0] = "another browser"
    at = open_page(run=run.token, gating="softmax", seed="4")
    mine = run_of(host, at)
    assert mine is not run
    assert (mine.knobs.gating, mine.recipe.seed) == ("softmax", 4)
    assert "The run is your own." in whispers(at)
    assert not at.warning
    assert address_of(at).get("run") != run.token
    at.select_slider(key="learning_rate").set_value(0.01).run()
    at.button(key="reset").click().run()
    assert run.knobs.learning_rate == Knobs().learning_rate, "and steers nothing"
    assert run.state().epoch == 1


def test_a_run_that_is_gone_is_said_and_its_settings_begin_anew(host: Host) -> None:
    at = open_page(run="x" * 5000, u="0.01", bias_rule="sign")
    assert "is not kept any more" in whispers(at)
    assert run_of(host, at).knobs.u == 0.01
    assert "run" not in address_of(at)


def test_without_a_token_the_earlier_run_is_offered(host: Host) -> None:
    _, run = visited(host, steps=1234, speed="max", gating="softmax", num_experts="8")
    run._touched -= 300.0
    at = open_page()
    fresh = run_of(host, at)
    assert fresh is not run
    assert offer(at) == ":material/history: Your earlier run is kept from 5 minutes ago, at step 1,234."
    at.button(key="take_up").click().run()
    assert not at.exception
    assert run_of(host, at) is run
    assert at.selectbox(key="gating").value == "softmax"
    assert at.session_state["num_experts"] == 8
    assert (run.recipe.num_experts, run.state().epoch, run.state().step) == (8, 1, 1234)
    wait_until(lambda: host.get(fresh.token) is None)  # what nobody used does not stay
    assert not offer(at)


def test_an_offer_may_be_declined(host: Host) -> None:
    _, run = visited(host)
    at = open_page()
    assert "is open in another tab" in offer(at)
    fresh = run_of(host, at)
    at.button(key="decline").click().run()
    assert not offer(at)
    assert run_of(host, at) is fresh
    assert host.get(run.token) is run


def test_nobody_is_offered_what_belongs_to_another(host: Host) -> None:
    visited(host)
    BROWSER[0] = "another browser"
    assert not offer(open_page())
    BROWSER[0] = ""
    assert not offer(open_page())


def test_an_offer_that_is_gone_is_said(host: Host) -> None:
    _, run = visited(host)
    at = open_page()
    fresh = run_of(host, at)
    run.close()
    at.button(key="take_up").click().run()
    assert "not kept any more" in warnings(at)
    assert run_of(host, at) is fresh


def test_two_tabs_on_one_run_keep_each_others_changes(host: Host) -> None:
    one, run = visited(host, bias_rule="sign")
    two = open_page(run=run.token)
    one.select_slider(key="u").set_value(0.01).run()
    two.select_slider(key="learning_rate").set_value(0.01).run()  # has not heard of the other's change
    assert (run.knobs.u, run.knobs.learning_rate) == (0.01, 0.01)
    assert two.select_slider(key="u").value == 0.01
    one.run()
    assert one.select_slider(key="learning_rate").value == 0.01
    two.selectbox(key="preset_choice").set_value("aux_loss").run()
    assert run.knobs.bias_rule == "none"
    one.run()
    assert one.selectbox(key="bias_rule").value == "none"
    assert run.knobs.bias_rule == "none"
    assert run.state().epoch == 1


def test_a_tab_does_not_undo_the_others_new_seed(host: Host) -> None:
    one, run = visited(host)
    two = open_page(run=run.token)
    one.button(key="new_seed").click().run()
    seed = run.recipe.seed
    epoch = run.state().epoch
    assert epoch == 2
    two.select_slider(key="learning_rate").set_value(0.01).run()
    assert (run.recipe.seed, run.state().epoch) == (seed, epoch)
    assert two.session_state["seed"] == seed


def test_what_the_server_does_not_allow_is_said_and_the_page_stands(host: Host) -> None:
    wide = {"tokens_per_step": "8192", "num_layers": "8", "num_experts": "256"}
    limited = Limits(max_experts=1000, max_tokens=40_000)
    before, host.limits = host.limits, limited
    try:
        at = open_page(**wide)
        assert "2048 experts in all layers are more than this server allows" in warnings(at)
        assert run_of(host, at).recipe == Recipe()
    finally:
        host.limits = before


def test_a_full_server_says_how_many_are_ahead(host: Host) -> None:
    before, host.limits = host.limits, replace(host.limits, max_runs=1)
    try:
        first, second, third = open_page(), open_page(), open_page()
        assert not first.info
        assert "Nobody is ahead of yours" in second.info[0].value
        assert "1 run is ahead of yours" in third.info[0].value
        third.button(key="run_pause").click().run()
        run_of(host, second).close()
        run_of(host, first).close()
        wait_until(lambda: run_of(host, third).state().step > 3)
    finally:
        host.limits = before


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(10, "a moment ago"), (60, "1 minute ago"), (7199, "1 hour ago"), (200_000, "2 days ago")],
)
def test_time_is_told_as_people_do(seconds: float, words: str) -> None:
    assert transport._ago(seconds) == words


# --- what is found again beside the run -------------------------------------------------------------------------------


def finds_of(at: AppTest) -> finds.Finds:
    return at.session_state["moeviz"].finds


def test_a_sweep_and_the_dots_are_found_again_by_their_browser_alone(host):
    at = open_page()
    at.switch_page("pages/sweep.py").run()
    at.button(key="sweep_example").click().run()
    sweep = finds_of(at).sweep
    finds_of(at).dots["a", 1] = "a dot"
    again = open_page().switch_page("pages/sweep.py").run()
    assert not again.exception
    assert finds_of(again).sweep is sweep
    assert finds_of(again).dots == {("a", 1): "a dot"}
    assert again.button(key="sweep_cancel").label == "Cancel"
    again.button(key="sweep_cancel").click().run()
    assert sweep.progress().status == "cancelled"
    BROWSER[0] = "another browser"
    assert finds_of(open_page()).dots == {}


def test_what_came_before_the_browser_had_a_name_is_kept_with_what_it_finds(host):
    earlier = open_page()
    finds_of(earlier).dots["a", 1] = "a dot"
    BROWSER[0] = ""
    at = open_page()
    finds_of(at).dots["b", 2] = "another"
    assert finds_of(at.run()).dots == {("b", 2): "another"}, "nobody has claimed the run yet"
    run_of(host, at).claim("one browser")
    assert finds_of(at.run()).dots == {("a", 1): "a dot", ("b", 2): "another"}
    assert finds_of(at) is finds_of(earlier)


def test_finds_go_with_the_last_visit():
    own = finds.Finds()
    assert finds.shared("a browser that leaves", own) is own
    gone = weakref.ref(own)
    del own
    gc.collect()
    assert gone() is None
    assert finds.shared("a browser that leaves", finds.Finds()).dots == {}
