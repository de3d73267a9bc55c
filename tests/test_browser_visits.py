"""A visitor's run in a real browser: reloaded, left and found again, looked at by others, robbed of its process."""

from __future__ import annotations

import os
import signal

import pytest
from playwright.sync_api import expect

from tests.browsing import (
    READY,
    RESTARTED,
    SECOND,
    button,
    choose,
    free_port,
    look,
    pause,
    run,
    run_to,
    serving,
    to,
    until,
)

pytestmark = pytest.mark.browser
DRAWN = f"{READY} && !m.recorded"


def running(page, step=30):
    run(page, step)
    return look(page, "token")


def test_a_browser_finds_its_run_again_and_another_gets_only_the_settings(new_page, watch, address):
    page = new_page("?seed=3&gating=softmax", own=True)  # with no page to go back to
    token = running(page)
    assert f"run={token}" in page.url
    assert "seed=3" in page.url
    page.reload()
    until(page, f"{DRAWN} && m.step > 30 && m.playing")
    assert look(page, "token") == token
    assert look(page, "epoch") == 1
    page.goto("about:blank")
    page.go_back()
    until(page, f"{DRAWN} && m.step > 30")
    assert look(page, "token") == token
    assert page.evaluate("history.length") <= 4, "the token adds no page to go back to"

    page.goto(address)
    until(page, "m && m.drawn > 0")
    assert look(page, "token") != token
    expect(page.get_by_text("Your earlier run")).to_be_visible()
    until(page, "m.status === 'ready' && m.agreed")  # else it is drawn anew, perhaps under the hand
    expect(page.locator("[data-test-script-state=notRunning]")).to_be_visible()
    button(page, "Take it up again").click()
    until(page, f"m.token === '{token}' && m.step > 30")
    expect(page.get_by_role("combobox", name="Gating", exact=True)).to_have_value("softmax")
    expect(page.get_by_text("Your earlier run")).to_have_count(0)
    assert f"run={token}" in page.url

    other = watch(address)  # with other cookies
    other.goto(address + f"?seed=4&run={token}")
    expect(other.get_by_text("The run is your own.")).to_be_visible()  # for some seconds
    until(other, "m && m.status === 'ready' && m.store.count")
    assert look(other, "token") != token
    assert look(other, "store.recipe.seed") == 4
    refused = other.context.request.get(f"{address}moeviz/run/{token}")
    assert refused.status == 403
    assert refused.json()["error"].startswith("This run belongs to another browser.")


def test_two_tabs_show_one_run_and_each_others_changes_but_never_under_the_visitors_hand(new_page):
    one = new_page("?bias_rule=sign&u=0.01")
    token = running(one)
    two = one.context.new_page()
    two.set_default_timeout(120 * SECOND)
    two.goto(one.url)
    until(two, f"{DRAWN} && m.step > 30 && m.playing")
    assert look(two, "token") == token
    one.get_by_role("slider", name="Bias update speed u").focus()
    one.keyboard.press("End")
    until(two, "m.marks.some(mark => mark.label === 'u 0.01 → 0.1')")
    expect(two.get_by_role("slider", name="Bias update speed u")).to_have_attribute("aria-valuetext", "0.1")

    # Of two requests that come at once the first may be lost, and it must not be the visitor's: while a hand is at
    # work, the charts have no page drawn anew.
    until(one, "m.agreed")
    one.evaluate(HAND)
    button(two, "Pause").click()
    until(one, "!m.playing && !m.agreed")
    begun = one.evaluate("window.answers")
    one.wait_for_function(f"window.answers > {begun + 8}")
    assert not look(one, "agreed")
    expect(button(one, "Pause")).to_be_visible()
    one.evaluate("window.rests = true")
    until(one, "m.agreed")
    expect(button(one, "Run")).to_be_visible()
    assert len(look(one, "marks")) == 1


HAND = """() => {
    const real = window.fetch
    window.answers = 0
    window.fetch = async (...asked) => {
        const answer = await real(...asked)
        window.answers += 1
        if (!window.rests) window.dispatchEvent(new Event("keydown"))
        return answer
    }
}"""


def test_a_visit_outlasts_workers_that_start_late_or_die_and_the_server_itself(watch, tmp_path):
    port = free_port()
    late = late_workers(tmp_path) | {"MOEVIZ_DATA": str(tmp_path / "data"), "MOEVIZ_WORKERS": "1"}
    page = watch(f"http://127.0.0.1:{port}/")
    with serving(port=port, env=late) as address:
        page.goto(address + "formulas")
        expect(page.get_by_role("heading", name="Formulas and code")).to_be_visible()
        to(page, "Playground")  # whoever comes first to a server may open any page, and has the frame around it
        begin_before_the_model_is_built(page, tmp_path)
        lose_the_workers(page, tmp_path)
        pause(page)
        choose(page, "Balancing", "Loss-free bias")
        until(page, "m.store.knobs.bias_rule === 'sign' && m.agreed")
        run_to(page, look(page, "step") + 20)
        token, epoch, step, loss = page.evaluate(NEWEST)
        watch.forgive(RESTARTED)
    with serving(port=port, env=late):
        until(page, f"m.epoch > {epoch} && m.status === 'ready' && m.store.count")
        assert page.evaluate(NEWEST) == [token, epoch + 1, step, loss]
        assert look(page, "store.knobs.bias_rule") == "sign"
        run(page, step + 40)
        page.close()


NEWEST = """(() => {
    const { token, epoch, step, store } = window.__moeviz
    return [token, epoch, step, store.task_loss[store.count - 1]]
})()"""


def late_workers(folder):
    """An environment in which a worker notes its number in the folder, and waits for a file `go` before it begins."""
    (folder / "sitecustomize.py").write_text(
        "import os, pathlib, sys, time\n"
        f"folder = pathlib.Path({str(folder)!r})\n"
        "if 'spawn_main' in str(sys.orig_argv):\n"
        "    (folder / f'{os.getpid()}.worker').touch()\n"
        "    while not (folder / 'go').exists():\n"
        "        time.sleep(0.1)\n"
    )
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def begin_before_the_model_is_built(page, folder):
    """Charts say that they are recorded, and after Run what they wait for."""
    until(page, "m && m.status === 'starting' && m.complete && m.recorded")
    badge, notice = page.get_by_text("Recorded start"), page.get_by_text("The model is being built.")
    expect(badge).to_be_visible()
    expect(notice).to_be_hidden()
    button(page, "Run").click()
    expect(notice).to_be_visible()
    expect(badge).to_be_hidden()
    (folder / "go").touch()
    until(page, "m.step > 10 && !m.recorded")


def lose_the_workers(page, folder):
    """The page says so for a while, and goes on."""
    step, epoch = look(page, "step"), look(page, "epoch")
    page.evaluate(LISTEN)
    for file in folder.glob("*.worker"):
        os.kill(int(file.stem), signal.SIGKILL)
    page.wait_for_function("window.heard.includes('The process that trained this run ended unexpectedly at step')")
    until(page, f"m.step > {step} + 60")
    assert look(page, "epoch") == epoch
    steps = page.evaluate("Array.from(__moeviz.store.step.slice(0, __moeviz.store.count))")
    assert steps == sorted(set(steps))
    assert page.get_by_role("alert").count() == 0


LISTEN = """() => {
    window.heard = ""
    const notice = document.querySelector(".moeviz .notice")
    const hear = () => { if (!notice.hidden) window.heard += notice.innerText }
    const anything = { attributes: true, characterData: true, childList: true, subtree: true }
    new MutationObserver(hear).observe(notice, anything)
}"""
