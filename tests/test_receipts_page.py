"""Does the page show a run's receipt, and does it take nothing for true that is brought to it?"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from moeviz import host as hosts
from moeviz import receipt
from moeviz.ui import hosting, receipts
from tests.test_downloads import open_popover
from tests.test_pages import open_page, run_of, wait_until

BAD = "![x](http://y.z) **b**"


@pytest.fixture(autouse=True)
def _open(monkeypatch):
    monkeypatch.setattr(receipts.st, "popover", open_popover)


def trained(steps=3, **parameters):
    at = open_page(**parameters)
    run = run_of(at)
    run.play(until=steps)
    wait_until(lambda: run.touch() or run.state().step == steps)
    at.run()
    assert not at.exception
    return at, run


def bring(at, text):
    at.text_area(key="receipt_text").set_value(text).run()
    assert not at.exception
    return at


def checked(at):
    at.button(key="check_begin").click().run()
    assert not at.exception
    wait_until(lambda: at.session_state["moeviz"].check.look() is not None)
    at.run()
    assert not at.exception
    return at


def shown(at):
    return [text.value for text in at.text]


def doctored(issued, **parts):
    return receipt.to_json(replace(issued, **parts))


def test_a_receipt_is_shown_whole_and_to_be_copied():
    at, run = trained(seed="7", balancing="loss_free", num_experts="8")
    issued = run.receipt()
    codes = [code.value for code in at.code]
    assert codes[1:3] == [issued.first, issued.last]
    assert codes[0].endswith("/" + issued.link)
    assert receipt.from_json(codes[3]) == issued
    [button] = [one for one in at.get("download_button") if "receipt" in one.proto.label]
    assert button.proto.label == "Download receipt (JSON)"
    assert any(text.startswith("Seed 7, 3 steps; moeviz 0.1.0, torch ") and "on cpu (" in text for text in shown(at))


def test_the_link_of_a_receipt_opens_the_settings_of_its_first_step():
    at, run = trained(seed="7", balancing="loss_free", top_k="4")
    at.selectbox(key="gating").set_value("softmax").run()
    run.step()
    wait_until(lambda: run.touch() or run.state().step == 4)
    at.run()
    issued = run.receipt()
    assert any("Settings were changed on the way, from step 4 on." in caption.value for caption in at.caption)
    other = open_page(**issued.settings)
    _, plan = issued.plan()
    assert (run_of(other).recipe, run_of(other).knobs) == (run.recipe, plan[0][1])
    assert run.knobs != plan[0][1]


def test_a_run_without_a_step_says_that_it_has_none():
    at = open_page(seed="70")
    assert any("no step yet" in info.value for info in at.info)
    assert not [one for one in at.get("download_button") if "receipt" in one.proto.label]


def test_a_receipt_that_is_brought_is_trained_again_and_confirmed():
    at, run = trained()
    bring(at, receipt.to_json(run.receipt()))
    assert not any("good reason" in text.value for text in at.markdown)
    checked(at)
    assert any("Same first and last snapshot" in success.value for success in at.success)
    assert run_of(at) is run
    at.button(key="check_read").click().run()
    assert not at.success


def test_a_doctored_receipt_is_told_apart():
    at, run = trained()
    checked(bring(at, doctored(run.receipt(), last="0" * 64)))
    [told] = [error.value for error in at.error]
    assert "First snapshot (step 0): the same. Last snapshot (step 3): another." in told
    assert any("changed after it was written" in text for text in shown(at))
    assert not at.success


def test_what_differs_is_said_before_anything_is_trained():
    at, run = trained()
    issued = run.receipt()
    bring(at, doctored(issued, settings=issued.settings | {"seed": "9", "u": "0.01"}, versions={"torch": BAD}))
    assert any("good reason" in text.value for text in at.markdown)
    assert any(f"here and {BAD} in the receipt." in text for text in shown(at)), "as text, which is never Markdown"
    assert not any(BAD in one.value for one in (*at.markdown, *at.caption, *at.warning))
    settings = next(caption.value for caption in at.caption if caption.value.startswith("Its settings beside"))
    assert "u 0.003 → 0.01" in settings
    assert "seed 0 → 9" in settings


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "no receipt of moeviz"),
        (BAD, "no receipt of moeviz"),
        (json.dumps({"moeviz_receipt": BAD}), f"format {BAD}"),
        ("[" * 100_000, "no receipt of moeviz"),
        ('{"moeviz_receipt": 1}' + " " * receipt.MAX_CHARACTERS, "too long"),
    ],
)
def test_what_is_no_receipt_is_refused_as_words_that_are_nothing_but_words(text, sentence):
    at = bring(open_page(), text)
    assert any(sentence in told for told in shown(at))
    assert [error.value for error in at.error] == ["**This cannot be checked.**"]
    assert not [button for button in at.button if button.key == "check_begin"]


def test_a_check_can_be_cancelled_and_its_run_is_gone():
    at, run = trained()
    bring(at, doctored(run.receipt(), steps=1_000_000))
    before = len(hosting.host()._runs)
    at.button(key="check_begin").click().run()
    assert not at.exception
    assert len(hosting.host()._runs) == before + 1
    check = at.session_state["moeviz"].check
    wait_until(lambda: check.step > 2)
    assert check.look() is None
    at.button(key="check_cancel").click().run()
    assert not at.exception
    assert len(hosting.host()._runs) == before
    assert at.session_state["moeviz"].check is None


def test_a_new_check_takes_the_place_of_an_older_one():
    at, run = trained()
    bring(at, doctored(run.receipt(), steps=1_000_000))
    at.button(key="check_begin").click().run()
    before = len(hosting.host()._runs)
    at.button(key="check_begin").click().run()
    assert len(hosting.host()._runs) == before
    at.button(key="check_cancel").click().run()


def test_what_this_server_cannot_train_is_refused_with_a_sentence(monkeypatch):
    at, run = trained()
    bring(at, receipt.to_json(run.receipt()))

    def refuse(*_):
        raise receipts.SettingsError("This server trains nothing.")

    monkeypatch.setattr(receipts, "Check", refuse)
    at.button(key="check_begin").click().run()
    assert any("This server trains nothing." in warning.value for warning in at.warning)
    assert at.session_state["moeviz"].check is None


def test_a_text_of_ones_own_is_the_visitors_or_must_be_brought():
    at, run = trained(task="text", tokens_per_step="128")
    text = bytes(range(32, 127)) * 40
    own = receipt.from_json(doctored(run.receipt(), text=receipt.hashlib.sha256(text).hexdigest()))
    bring(at, receipt.to_json(own))
    assert at.button(key="check_begin").disabled
    at.file_uploader(key="own_text").upload("own.txt", text)
    at.button(key="restart_with").click().run()
    assert not at.button(key="check_begin").disabled


def test_of_twins_each_has_a_receipt():
    at, run = trained()
    number = run.add_twin({"top_k": 4})
    wait_until(lambda: run.touch() or run.state().remade is None)
    at.run()
    choice = next(one for one in at.button_group if one.proto.label == "Of twin")
    assert choice.options == ["A", "B"]
    assert at.code[2].value == run.receipt().last
    choice.set_value(number).run()
    assert not at.exception
    assert at.code[2].value == run.receipt(number).last != run.receipt().last


@pytest.mark.parametrize("exactly", [True, False])
def test_of_twins_that_are_rounded_otherwise_than_alone_no_hash_is_promised(exactly, monkeypatch):
    monkeypatch.setattr(hosts.Host, "stacks_exactly", lambda self, device: exactly)
    at, run = trained(num_experts="8")
    assert any("hashes, to the bit" in caption.value for caption in at.caption), "a run alone is what it is"
    run.add_twin({"gating": "softmax"})
    wait_until(lambda: run.touch() or run.state().remade is None)
    at.run()
    assert any("hashes, to the bit" in caption.value for caption in at.caption) == exactly
    assert any("**to rounding**" in caption.value for caption in at.caption) == (not exactly)
