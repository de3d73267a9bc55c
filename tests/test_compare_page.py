"""The Compare page as a script: twins are set up, told apart, locked, shared by address and branched."""

from __future__ import annotations

from base64 import b64decode

import pytest

from moeviz.config import KNOB_FIELDS, Knobs, Recipe
from moeviz.host import MOST_TWINS, Host
from moeviz.ui import fields, tree, twins
from tests.test_pages import open_page, run_of, wait_until


def open_compare(**parameters):
    return open_page(**parameters).switch_page("pages/compare.py").run()


def press(at, key):
    return at.button(key=key).click().run()


def told(at):
    return " ".join(warning.value for warning in at.warning)


def test_a_twin_is_added_changed_and_removed():
    at = open_compare()
    assert not at.exception
    run = run_of(at)
    at.selectbox(key="twin_new_setting").select("gating").run()
    at.selectbox(key="twin_new_gating_value").select("softmax").run()
    press(at, "twin_new_add")
    assert run_of(at) is run
    [_, twin] = run.twins
    assert (twin.name, twin.changes, twin.differences) == ("B", {"gating": "softmax"}, ["gating sigmoid → softmax"])
    at.selectbox(key=f"twin_{twin.id}_gating_value").select("sqrtsoftplus").run()
    press(at, f"twin_{twin.id}_change")
    assert run.twins[1].changes == {"gating": "sqrtsoftplus"}
    press(at, f"twin_{twin.id}_remove")
    assert len(run.twins) == 1
    assert not at.exception


def test_the_lock_refuses_a_second_difference_and_opens():
    at = open_compare(bias_rule="sign", twins="u:0.1")
    run = run_of(at)
    [_, twin] = run.twins
    at.selectbox(key=f"twin_{twin.id}_setting").select("gating").run()
    at.selectbox(key=f"twin_{twin.id}_gating_value").select("softmax").run()
    press(at, f"twin_{twin.id}_change")
    assert run.twins[1].changes == {"u": 0.1}
    assert "Twin B differs in Bias update speed u already" in told(at)
    assert "unlock" in told(at)
    at.toggle(key="lock").set_value(False).run()
    press(at, f"twin_{twin.id}_change")
    assert run.twins[1].changes == {"u": 0.1, "gating": "softmax"}
    assert run.twins[1].differences == ["gating sigmoid → softmax", "u 0.003 → 0.1"]


def test_twins_follow_the_base_of_the_sidebar():
    at = open_compare(bias_rule="sign", twins="gating:softmax;u:0.1")
    run = run_of(at)
    at.select_slider(key="u").set_value(0.01).run()
    assert [twin.knobs.u for twin in run.twins] == [0.01, 0.01, 0.1]
    assert [twin.knobs.gating for twin in run.twins] == ["sigmoid", "softmax", "sigmoid"]


def test_an_address_brings_its_twins_and_is_kept_true():
    at = open_compare(bias_rule="sign", twins="u:0.1;gating:softmax,top_k:4")
    run = run_of(at)
    assert [twin.changes for twin in run.twins[1:]] == [{"u": 0.1}, {"gating": "softmax", "top_k": 4}]
    press(at, f"twin_{run.twins[1].id}_remove")
    assert at.query_params["twins"] == "gating:softmax,top_k:4"
    press(at, f"twin_{run.twins[1].id}_remove")
    assert "twins" not in at.query_params


@pytest.mark.parametrize(
    ("asked", "granted", "sentence"),
    [
        ("u:fast", 0, "fast"),
        ("seed:4", 0, "seed cannot differ between twins"),
        ("u:0.1;top_k:99;gating:softmax", 2, "top_k=99"),
        ("u:0.1;u:0.2;u:0.3;u:0.4;u:0.5", 3, f"There can be {MOST_TWINS} twins"),
        ("<b>:1", 0, "cannot differ between twins"),
        (":::;;,,=", 1, "cannot differ"),
        ("balancing:loss_free;balancing:magic", 1, "magic is not a known strategy"),
    ],
)
def test_what_an_address_asks_for_in_vain_is_said(asked, granted, sentence):
    at = open_page(twins=asked)
    assert not at.exception
    assert len(run_of(at).twins) == 1 + granted
    assert sentence in told(at)


def test_links_of_twins_are_read_as_they_are_written():
    changes = [{"u": 0.1}, {"balancing": "aux_loss"}, {"norm_topk": False, "top_k": 4, "gating": "softmax"}]
    text = fields.twins_to_link(changes)
    assert fields.twins_from_link(text, Recipe(), Knobs()) == (changes, [])
    assert fields.twins_from_link("", Recipe(), Knobs()) == ([], [])


def test_a_branch_is_asked_for_and_made():
    at = open_page()
    run = run_of(at)
    run.set_speed(None)
    run.play(until=40)
    wait_until(lambda: run.state().step == 40 and not run.state().playing)
    at.session_state["moeviz"].branching = (25, 0)
    at.run()
    assert any("Branch at step 25 of A" in text.value for text in at.markdown)
    at.selectbox(key="branch_25_0_setting").select("balancing").run()
    at.selectbox(key="branch_25_0_balancing_value").select("loss_free").run()
    press(at, "branch_now")
    [_, twin] = run.twins
    assert (twin.since, twin.parent, twin.changes) == (25, 0, {"balancing": "loss_free"})
    wait_until(lambda: run.state().remade is None)
    assert run.records_since(-1, -1, twin=twin.id)[1]["step"].tolist() == list(range(41))
    at.session_state["moeviz"].branching = (30, twin.id)
    at.run()
    press(at, "branch_not")
    assert len(run.twins) == 2
    assert not at.exception


def test_the_playground_says_that_twins_train_beside():
    at = open_page(bias_rule="sign", twins="u:0.1")
    assert any("Beside it train B" in text.value for text in at.markdown)
    press(at, "alone")
    assert len(run_of(at).twins) == 1
    assert not any("Beside it" in text.value for text in at.markdown)


def test_every_setting_that_is_offered_can_be_had():
    recipe, at = Recipe(), open_compare(bias_rule="sign")
    offered = at.selectbox(key="twin_new_setting").options
    assert len(offered) > 15
    for name in twins.SETTINGS:
        for value in twins.values(name, recipe, Knobs()):
            assert fields.twins_from_link(fields.twins_to_link([{name: value}]), recipe, Knobs())[1] == []
        if len(twins.values(name, recipe, Knobs())) > 1:
            assert twins.contrast(name, recipe, Knobs()) != getattr(Knobs(), name)
    assert set(twins.SETTINGS) - {"balancing"} == set(KNOB_FIELDS) - {"probe_every"}


def test_a_setting_that_would_do_nothing_says_so():
    at = open_compare()
    at.selectbox(key="twin_new_setting").select("u").run()
    assert any("It would change nothing" in caption.value for caption in at.caption)


def test_another_value_is_offered_than_others_have():
    first = twins.contrast("u", Recipe(), Knobs())
    assert first > Knobs().u
    assert twins.contrast("u", Recipe(), Knobs(), [first]) not in (first, Knobs().u)


def test_changes_with_another_one():
    assert twins.merged({"u": 0.1}, {"u": 0.2}) == {"u": 0.2}
    assert twins.merged({"u": 0.1}, {"gating": "softmax"}) == {"u": 0.1, "gating": "softmax"}
    assert twins.merged({"alpha": 1.0, "u": 0.1}, {"balancing": "loss_free"}) == {"u": 0.1, "balancing": "loss_free"}
    assert twins.merged({"balancing": "aux_loss"}, {"alpha": 1.0}) == {"alpha": 1.0}


class Drawn:
    def __init__(self, id, name, parent, since):
        self.id, self.name, self.parent, self.since = id, name, parent, since


def test_the_tree_is_drawn_where_somebody_branched():
    base, twin = Drawn(0, "A", None, 0), Drawn(1, "B", 0, 0)
    assert tree.drawn([base, twin], 100) == ""
    drawn = tree.drawn([base, twin, Drawn(2, "<C>", 1, 50)], 100)
    told, _, data = drawn.partition("](data:image/svg+xml;base64,")
    assert told == "![<C> parted from B at step 50"
    picture = b64decode(data.rstrip(")")).decode()
    assert "&lt;C&gt;</text>" in picture
    middle = tree.LEFT + (tree.WIDTH - tree.LEFT - tree.RIGHT) / 2
    assert f"M{middle:.1f} {tree.ROW * 1.6:.1f}V{tree.ROW * 2.6:.1f}" in picture


# --- where a machine rounds twins otherwise than the runs alone -------------------------------------------------------


@pytest.mark.parametrize("exactly", [True, False, None], ids=["to the bit", "to rounding", "not known yet"])
def test_where_twins_are_rounded_otherwise_than_alone_it_is_said(exactly, monkeypatch):
    monkeypatch.setattr(Host, "stacks_exactly", lambda self, device: exactly)
    at = open_compare()
    assert not at.exception
    assert any("**to rounding**, not to the bit" in caption.value for caption in at.caption) == (exactly is False)
