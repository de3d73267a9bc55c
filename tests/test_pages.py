"""The pages as scripts: controls, what they do to the run, and what is said. The live charts need a browser."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import signal
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.testing.v1 import AppTest

from moeviz import balance, metrics, presets, routing
from moeviz.config import BALANCING, KNOB_FIELDS, RECIPE_FIELDS, Knobs, Recipe
from moeviz.ui import controls, fields, hosting, session, source

APP = str(Path(__file__).parents[1] / "app.py")


def shared_host():
    """The host of all pages that are run as scripts here. Each run is closed at the end of its test."""
    cached = getattr(hosting.host, "cache_info", None)  # not where a test brings a host of its own
    if cached and not cached().currsize:
        with pytest.MonkeyPatch.context() as patch:
            # Nobody watches in a test, and on a busy machine that may be long.
            patch.setenv("MOEVIZ_PAUSE_AFTER", "600")
            patch.setenv("MOEVIZ_WORKERS", "1")
            hosting.host()
        wait_until(lambda: hosting.host().circumstances("auto"), 300)  # a worker that is up
    return hosting.host()


def open_page(**parameters):
    shared_host()
    at = AppTest.from_file(APP, default_timeout=120)
    at.query_params.update(parameters)
    return at.run()


def run_of(at):
    return hosting.host().get(at.session_state["moeviz"].token)


def restart_button(at):
    return next(button for button in at.button if button.label == "Restart with these")


def wait_until(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_the_playground_offers_every_setting_with_its_default():
    at = open_page()
    assert not at.exception
    expected = fields.values_of(Recipe(), Knobs())
    hidden = {"capacity_factor"}  # shown with the strategies that use it
    assert {name: at.session_state[name] for name in expected} == expected
    drawn = {element.key for element in (*at.selectbox, *at.select_slider, *at.number_input, *at.toggle)}
    drawn |= {element.key for element in at.get("button_group")}
    assert expected.keys() - hidden <= drawn


def test_a_control_acts_on_the_run_that_is_there():
    at = open_page()
    run = run_of(at)
    at.selectbox(key="balancing_choice").select("loss_free").run()
    at.select_slider(key="u").set_value(0.1).run()
    assert run_of(at) is run
    assert run.knobs == Knobs(bias_rule="sign", u=0.1)
    assert [label for _, label in run.labels_since(0)] == ["balancing none → loss_free", "u 0.003 → 0.1"]


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_sets_all_knobs_and_keeps_the_run(name):
    at = open_page()
    run = run_of(at)
    at.selectbox(key="preset_choice").select(name).run()
    assert not at.exception
    assert run_of(at) is run
    assert run.knobs == presets.PRESETS[name].knobs
    assert not at.warning


def test_the_preset_menu_names_what_is_really_set():
    at = open_page(preset="too_fast")
    assert at.selectbox(key="preset_choice").value == "too_fast"
    at.select_slider(key="u").set_value(0.003).run()
    assert at.selectbox(key="preset_choice").value == "loss_free"
    at.number_input(key="top_k").set_value(3).run()
    assert at.selectbox(key="preset_choice").value == "custom"


def test_capacity_is_offered_where_it_acts():
    at = open_page()
    assert "capacity_factor" not in {slider.key for slider in at.select_slider}
    at.selectbox(key="preset_choice").select("deepseek_v2").run()
    assert "capacity_factor" in {slider.key for slider in at.select_slider}


def in_the_open(at):
    """Keys of the sliders outside "More"."""
    behind = {slider.key for slider in at.sidebar.expander[0].select_slider}
    return [slider.key for slider in at.sidebar.select_slider if slider.key not in behind]


def test_the_strength_of_the_only_loss_stands_in_the_open_and_of_several_under_more():
    at = open_page()
    assert in_the_open(at) == ["u"]
    at.selectbox(key="balancing_choice").select("aux_loss").run()
    assert in_the_open(at) == ["u", "alpha"]
    at.select_slider(key="alpha_z").set_value(1e-4).run()
    assert in_the_open(at) == ["u"]
    assert "2 losses are on" in " ".join(caption.value for caption in at.sidebar.caption)
    assert {"alpha", "alpha_z"} <= {slider.key for slider in at.select_slider}
    at.select_slider(key="alpha").set_value(0.0).run()
    assert in_the_open(at) == ["u", "alpha_z"]
    assert run_of(at).knobs == Knobs(alpha_z=1e-4)
    assert not at.exception


@pytest.mark.parametrize("name", BALANCING)
def test_a_balancing_sets_the_rule_and_all_losses_and_leaves_the_rest(name):
    at = open_page(bias_rule="quantile", alpha_device="0.3", top_k="3", u="0.01")
    assert at.selectbox(key="balancing_choice").value == "custom"
    at.selectbox(key="balancing_choice").select(name).run()
    assert not at.exception
    assert run_of(at).knobs == Knobs(**BALANCING[name], top_k=3, u=0.01)
    assert at.selectbox(key="balancing_choice").value == name
    assert "custom" not in at.selectbox(key="balancing_choice").options
    assert at.selectbox(key="bias_rule").value == BALANCING[name].get("bias_rule", "none")


def test_the_balancing_menu_names_what_is_really_set():
    at = open_page(balancing="Bias + sequence loss (V3)")
    assert at.selectbox(key="balancing_choice").value == "deepseek_v3"
    assert "balancing" not in at.query_params
    at.select_slider(key="alpha_sequence").set_value(0.1).run()
    assert at.selectbox(key="balancing_choice").value == "deepseek_v3", "whatever the strength"
    at.selectbox(key="bias_rule").select("quantile").run()
    assert at.selectbox(key="balancing_choice").value == "custom"
    assert run_of(at).knobs == Knobs(bias_rule="quantile", alpha_sequence=0.1)
    at.selectbox(key="bias_rule").select("none").run()
    assert at.selectbox(key="balancing_choice").value == "sequence_loss"


SWITCHED = ("bias_rule", "u", "damping", "freeze_after", "num_groups", "groups_kept", "group_score", "protected_share")


@pytest.mark.parametrize(
    ("parameters", "enabled"),
    [
        ({}, {"bias_rule", "num_groups"}),
        ({"bias_rule": "rms"}, {"bias_rule", "u", "freeze_after", "num_groups"}),
        ({"bias_rule": "quantile"}, {"bias_rule", "damping", "freeze_after", "num_groups"}),
        ({"num_groups": "4", "groups_kept": "2"}, {"bias_rule", "num_groups", "groups_kept", "group_score"}),
        ({"num_groups": "4", "groups_kept": "4"}, {"bias_rule", "num_groups", "groups_kept"}),
        ({"token_dropping": "expert"}, {"bias_rule", "num_groups", "protected_share"}),
        ({"router": "hash", "bias_rule": "sign", "num_groups": "4", "groups_kept": "2"}, set()),
        ({"router": "expert_choice", "bias_rule": "sign", "num_groups": "4", "groups_kept": "2"}, set()),
    ],
)
def test_only_what_can_act_is_enabled(parameters, enabled):
    at = open_page(**parameters)
    assert not at.exception
    assert not at.warning
    drawn = [*at.selectbox, *at.select_slider, *at.number_input, *at.get("button_group")]
    assert {element.key for element in drawn if element.key in SWITCHED and not element.disabled} == enabled


@pytest.mark.parametrize("parameters", [{"router": "hash"}, {"router": "expert_choice", "token_dropping": "device"}])
def test_other_routers_train_on_the_page(parameters):
    at = open_page(**parameters)
    run = run_of(at)
    wait_until(lambda: run.state().status == "ready")
    at.button(key="step").click().run()
    wait_until(lambda: run.state().step == 1)


def test_groups_begin_with_half_of_them_kept_and_impossible_numbers_are_not_offered():
    at = open_page(num_experts="8", top_k="4")
    at.selectbox(key="num_groups").select(4).run()
    assert at.selectbox(key="groups_kept").value == 2
    assert at.selectbox(key="groups_kept").options == ["2", "3", "4"]
    assert run_of(at).knobs.num_groups == 4


def test_a_control_that_makes_another_impossible_moves_it_and_says_so():
    at = open_page(num_groups="4", groups_kept="1")
    at.number_input(key="top_k").set_value(6).run()
    assert "top_k=6 does not fit into 1 kept groups" in at.warning[0].value
    assert run_of(at).knobs.groups_kept == 2
    at.button(key="got_it").click().run()
    assert not at.warning


def test_an_address_of_nonsense_opens_the_page_with_a_sentence_each():
    at = open_page(gating="foo", u="7", num_experts="10", num_groups="4", bogus="1", speed="warp", preset="mixtral")
    assert not at.exception
    said = at.warning[0].value
    for part in ("gating=foo", "u=7", "10 experts cannot be split into 4", "'bogus'", "speed=warp"):
        assert part in said
    assert run_of(at).recipe.num_experts == 10
    assert run_of(at).knobs.gating == "softmax", "the preset's part of the address holds"


def test_a_refused_recipe_says_why_and_leaves_the_run():
    at = open_page()
    run = run_of(at)
    wait_until(lambda: run.state().status == "ready")
    epoch = run.state().epoch
    at.number_input(key="tokens_per_step").set_value(1000)
    restart_button(at).click().run()
    assert "tokens_per_step=1000 cannot be cut into sequences of 32" in at.warning[0].value
    assert (run_of(at), run.state().epoch, run.recipe) == (run, epoch, Recipe())
    assert at.number_input(key="tokens_per_step").value == 1024


def test_another_recipe_begins_again_at_step_0():
    at = open_page()
    run = run_of(at)
    wait_until(lambda: run.state().status == "ready")
    at.number_input(key="num_experts").set_value(8)
    restart_button(at).click().run()
    wait_until(lambda: run.state().status == "ready")
    assert (run_of(at), run.recipe.num_experts, run.state().step) == (run, 8, 0)


def test_restart_begins_again_also_where_nothing_is_new():
    at = open_page(speed="1/s")
    run = run_of(at)
    wait_until(lambda: run.state().status == "ready")
    epoch = run.state().epoch
    restart_button(at).click().run()
    assert (run_of(at), run.state().epoch) == (run, epoch + 1)
    at.run()
    assert run.state().epoch == epoch + 1, "once"


def test_a_text_of_ones_own_is_learned_kept_after_a_reload_and_put_away():
    at = open_page(task="text")
    run, book = run_of(at), b"It was a bright cold day in April. " * 100
    assert run.text is None
    other = open_page(run=run.token)
    at.file_uploader(key="own_text").upload("book.txt", book)
    restart_button(at).click().run()
    assert run.text == book
    restart_button(other.run()).click().run()
    assert run.text == book, "another tab on the run knows of it"
    again = open_page(run=run.token)
    assert run_of(again) is run
    again.number_input(key="num_experts").set_value(8)
    restart_button(again).click().run()
    assert (run.recipe.num_experts, run.text) == (8, book), "the browser has forgotten the file, the run has not"
    assert again.toggle(key="keep_text").label == "Keep your text of 3,500 bytes"
    again.toggle(key="keep_text").set_value(False)
    restart_button(again).click().run()
    assert run.text is None
    assert "keep_text" not in {toggle.key for toggle in again.toggle}


def test_a_text_that_is_too_short_is_refused_and_the_run_goes_on_as_it_was():
    at = open_page(task="text")
    run = run_of(at)
    recipe, epoch = run.recipe, run.state().epoch
    at.file_uploader(key="own_text").upload("note.txt", b"short")
    at.number_input(key="num_experts").set_value(8)
    restart_button(at).click().run()
    assert "The run goes on as it was." in at.warning[0].value
    assert (run.recipe, run.text, run.state().epoch) == (recipe, None, epoch)
    assert at.number_input(key="num_experts").value == 16


class BrokenOff(BaseException):
    """What Streamlit breaks a callback off with is no Exception either."""


def broken_off():
    raise BrokenOff


def test_what_was_broken_off_is_done_before_anything_else_and_once(monkeypatch):
    me, done, breaks = session.Visitor(Recipe(), Knobs()), [], [BrokenOff(), None]
    monkeypatch.setattr(session, "visitor", lambda: me)

    def first(what):
        if breaks and (error := breaks.pop(0)):
            raise error
        done.append(what)

    with pytest.raises(BrokenOff):
        session.surely(first)("one")
    assert done == []
    session.surely(done.append)("two")
    assert done == ["one", "two"]
    session.surely(done.append)("three")
    assert done == ["one", "two", "three"]


def test_a_click_that_two_drawings_are_told_of_counts_once(monkeypatch):
    me, done = session.Visitor(Recipe(), Knobs()), []
    monkeypatch.setattr(session, "visitor", lambda: me)
    monkeypatch.setattr(session.st, "rerun", broken_off)

    def drawn(clicked):
        session.button("Run", "run", done.append, ("one",), make=lambda *_, **__: clicked)

    with pytest.raises(BrokenOff):  # nobody was there to be called: it is drawn again, and done before that
        drawn(clicked=True)
    session._do_what_was_asked(me)
    drawn(clicked=True)
    session._do_what_was_asked(me)
    assert done == ["one"]
    drawn(clicked=False)
    with pytest.raises(BrokenOff):
        drawn(clicked=True)
    session._do_what_was_asked(me)
    assert done == ["one", "one"], "another click counts again"


def test_what_fails_is_not_tried_again(monkeypatch):
    me, done = session.Visitor(Recipe(), Knobs()), []
    monkeypatch.setattr(session, "visitor", lambda: me)
    with pytest.raises(ZeroDivisionError):
        session.surely(lambda: 1 / 0)()
    session.surely(done.append)("one")
    assert done == ["one"]


def test_another_task_brings_its_own_sizes_unless_they_were_chosen():
    at = open_page()
    at.selectbox(key="task").select("text")
    restart_button(at).click().run()
    assert (run_of(at).recipe.d_model, run_of(at).recipe.num_layers) == (48, 2)
    assert at.number_input(key="num_layers").value == 2
    at.selectbox(key="task").select("skills")
    at.number_input(key="d_model").set_value(64)
    restart_button(at).click().run()
    assert (run_of(at).recipe.d_model, run_of(at).recipe.num_layers) == (64, 1)


def test_a_device_that_is_not_here_is_said_by_the_run_and_leaves_a_way_back():
    at = open_page(device="mps")
    run = run_of(at)
    wait_until(lambda: run.state().status == "failed")
    at.run()
    assert "device=mps is not on this machine. Choose auto or" in at.error[0].value
    at.selectbox(key="device").select("auto")
    restart_button(at).click().run()
    wait_until(lambda: run.state().status == "ready")
    assert not at.run().error


def test_experts_that_no_number_of_devices_divides_leave_the_run_and_its_knobs_alone():
    at = open_page(num_experts="10")
    assert not at.exception
    assert (run_of(at).knobs, run_of(at).version) == (Knobs(), 0)
    at.run()
    assert run_of(at).version == 0


def place_of(at, key):
    """Where in Streamlit's order the part of the page is that has a button in it."""
    return next(index for index, part in at.main.children.items() if key in str(part))


def test_what_is_said_above_moves_nothing_below():
    at = open_page(gating="foo")
    assert at.warning
    before = place_of(at, "run_pause")
    at.button(key="got_it").click().run()
    assert not at.warning
    assert place_of(at, "run_pause") == before


def test_only_a_browser_that_left_too_early_is_kept_from_the_log():
    def line(cause):
        return logging.LogRecord(
            "uvicorn.error", logging.ERROR, "", 0, "", (), (type(cause), cause, None) if cause else None
        )

    late = RuntimeError('Cannot call "send" once a close message has been sent.')
    assert not hosting.worth_telling(line(late))
    for other in (None, RuntimeError("something else"), ValueError("once a close message has been sent")):
        assert hosting.worth_telling(line(other))


def click_from_before(key, **address):
    """A new session that is told at its very beginning of a click on a button which another has drawn."""
    clicked = WidgetStates()
    clicked.widgets.add(id=open_page().button(key=key).proto.id, trigger_value=True)
    at = AppTest.from_file(APP, default_timeout=120)
    at.query_params.update(address)
    return at._run(clicked)


@pytest.mark.parametrize("address", [{}, {"speed": "warp"}])
def test_a_click_on_a_page_that_outlived_its_session_counts(address):
    at = click_from_before("run_pause", **address)
    wait_until(lambda: run_of(at).state().step > 5)
    assert at.button(key="run_pause").label == "Pause"
    assert at.run().button(key="run_pause").label == "Pause"
    at.button(key="run_pause").click().run()
    assert at.button(key="run_pause").label == "Run"


def test_a_click_from_before_may_set_controls():
    at = click_from_before("new_seed")
    assert not at.exception
    assert run_of(at).recipe.seed == at.session_state["seed"] != 0


def test_the_transport_runs_steps_pauses_and_resets():
    at = open_page()
    run = run_of(at)
    wait_until(lambda: run.state().status == "ready")
    assert at.button(key="run_pause").label == "Run"
    at.button(key="step").click().run()
    wait_until(lambda: run.state().step == 1)
    at.button(key="run_pause").click().run()
    assert at.button(key="run_pause").label == "Pause"
    wait_until(lambda: run.state().step > 20)
    at.button(key="run_pause").click().run()
    assert at.button(key="run_pause").label == "Run"
    at.button(key="reset").click().run()
    wait_until(lambda: run.state().status == "ready")
    assert run.state().step == 0
    at.button(key="new_seed").click().run()
    assert run.recipe.seed == at.session_state["seed"] != 0


def test_run_to_a_step_stops_there_and_a_step_behind_is_refused_with_a_sentence():
    at = open_page()
    run = run_of(at)
    wait_until(lambda: run.state().status == "ready")
    at.number_input(key="until").set_value(30).run()
    at.button(key="run_until").click().run()
    wait_until(lambda: not run.state().playing)
    assert run.state().step == 30
    at.button(key="run_until").click().run()
    assert "already at step 30" in at.warning[0].value


def test_speed_is_the_runs_target():
    at = open_page(speed="10/s")
    assert run_of(at).speed == 10


def test_settings_outlast_a_look_at_another_page():
    at = open_page()
    at.selectbox(key="preset_choice").select("too_fast").run()
    run = run_of(at)
    at.switch_page("pages/formulas.py").run()
    assert not at.exception
    at.switch_page("pages/playground.py").run()
    assert run_of(at) is run
    assert run.knobs == presets.PRESETS["too_fast"].knobs


def test_killed_workers_are_no_trouble_to_a_page():
    at = open_page()
    run = run_of(at)
    at.button(key="run_pause").click().run()
    wait_until(lambda: run.state().step > 5)
    step = run.state().step
    for process in hosting.host().process_ids:
        os.kill(process, signal.SIGKILL)
    at.run()
    assert not at.error
    assert run.state().playing
    heard = set()  # it is said for a while
    wait_until(lambda: heard.add(run.state().notice) or run.state().step > step + 5)
    assert any("ended unexpectedly at step" in said for said in heard)
    at.run()
    assert run_of(at) is run


def test_the_formulas_page_shows_the_very_code_that_runs():
    at = open_page()
    at.switch_page("pages/formulas.py").run()
    assert not at.exception
    shown = [block.value for block in at.code]
    for function in (routing.route, routing.limit_to_groups, balance.sign_rule, metrics.max_vio):
        assert inspect.getsource(function).strip() in shown


def let_others_in(*_):
    time.sleep(0.0001)


def test_code_is_read_in_many_threads_while_python_tidies_up():
    """A collection in the middle lets other threads in; ast.parse of Python 3.11 then counts their depth as its own."""
    before = gc.get_threshold()
    gc.set_threshold(20)
    gc.callbacks.append(let_others_in)
    names = [("routing", "route"), ("balance", "sign_rule"), ("metrics", "max_vio"), ("routing", "limit_to_groups")]
    try:
        with ThreadPoolExecutor(8) as threads:
            shown = list(threads.map(lambda name: source.of.__wrapped__(*name), names * 8))
    finally:
        gc.callbacks.remove(let_others_in)
        gc.set_threshold(*before)
    assert shown == [source.of(*name) for name in names] * 8


def test_scripts_are_not_taken_apart_for_magic_and_not_ended_before_they_begin():
    text = (Path(__file__).parent.parent / ".streamlit" / "config.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["runner"] == {"fastReruns": False, "magicEnabled": False, "postScriptGC": False}


def test_a_name_without_code_is_an_error_and_not_an_empty_box():
    with pytest.raises(LookupError, match="defines no nothing"):
        source.of("routing", "nothing")


def test_a_page_waits_while_charts_show_what_a_slider_told_the_run_by_itself(monkeypatch):
    at = open_page(balancing="loss_free")
    run, waited = run_of(at), []
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=time.monotonic, sleep=waited.append))
    monkeypatch.setattr(session, "CHARTS_FIRST", 600.0)
    run.set_knobs(replace(run.knobs, u=0.01))
    at.run()
    assert waited == []
    assert run.set_knobs(replace(run.knobs, u=0.1), run.version)
    at.run()
    assert len(waited) == 1
    assert 0 < waited[0] <= session.CHARTS_FIRST
    assert at.select_slider(key="u").value == 0.1
    monkeypatch.setattr(session, "CHARTS_FIRST", 0.0)  # it is later than that by now
    at.run()
    assert len(waited) == 1


def test_every_setting_has_a_word_of_help():
    assert all(spec.metadata["help"] for spec in (*RECIPE_FIELDS.values(), *KNOB_FIELDS.values()))


def test_the_process_that_serves_pages_never_imports_torch():
    script = f"""
import sys
from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.testing.v1 import AppTest
at = AppTest.from_file({APP!r}, default_timeout=120).run()
assert not at.exception
assert "torch" not in sys.modules
"""
    env = os.environ | {"MOEVIZ_WORKERS": "1"}
    subprocess.run([sys.executable, "-c", script], env=env, check=True, capture_output=True, timeout=120)


def test_a_browser_that_is_late_brings_no_preset_back(monkeypatch):
    monkeypatch.setattr(session, "STALE_SECONDS", 600.0)
    at = open_page(preset="loss_free")
    at.select_slider(key="u").set_value(0.01).run()
    assert at.selectbox(key="preset_choice").value == "custom"
    # The next move is made before the browser hears of that: it brings the menu as it was.
    at.selectbox(key="preset_choice").set_value("loss_free")
    at.select_slider(key="u").set_value(0.02).run()
    assert not at.exception
    assert run_of(at).knobs.u == 0.02
    assert at.selectbox(key="preset_choice").value == "custom"
    monkeypatch.setattr(session, "STALE_SECONDS", 0.0)  # later, the same is a choice
    at.selectbox(key="preset_choice").set_value("loss_free").run()
    assert run_of(at).knobs == presets.preset("loss_free").knobs


@pytest.mark.parametrize("menu", ["preset", "balancing"])
def test_a_menu_whose_choice_is_no_longer_offered_chooses_nothing(menu, monkeypatch):
    """Of a choice that went meanwhile the browser brings the words that stood there."""
    monkeypatch.setattr(session, "chosen", lambda name: "Custom")
    monkeypatch.setattr(session, f"choose_{menu}", lambda name: pytest.fail(f"chose {name}"))
    getattr(controls, f"_choose_{menu}")()
