"""A visitor's run in a real browser: reloaded, left and found again, looked at by others, robbed of its process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browsing import READY, RESTARTED, SECOND, button, free_port, look, run, run_to, serving, until

pytestmark = pytest.mark.browser
DRAWN = f"{READY} && !m.recorded"


def running(page, step=30):
    run(page, step)
    return look(page, "token")


def workers_of_this_process_tree():
    """Worker processes of the servers that this test started."""
    found, parents = [], {os.getpid()}
    lines = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            lines.append((int(path.name), int((path / "stat").read_text().rpartition(")")[2].split()[1]), path))
        except OSError:
            continue
    for _ in range(3):
        parents |= {pid for pid, parent, _ in lines if parent in parents}
    for pid, parent, path in lines:
        if parent in parents and b"spawn_main" in (path / "cmdline").read_bytes():
            found.append(pid)
    return found


def test_a_reload_and_the_back_button_find_the_run(new_page):
    page = new_page("?seed=3")
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


def test_an_address_without_the_run_is_offered_it(new_page, address):
    page = new_page("?gating=softmax")
    token = running(page)
    page.goto(address)
    until(page, "m && m.drawn > 0")
    assert look(page, "token") != token
    expect(page.get_by_text("Your earlier run")).to_be_visible()
    button(page, "Take it up again").click()
    until(page, f"m.token === '{token}' && m.step > 30")
    expect(page.get_by_role("combobox", name="Gating", exact=True)).to_have_value("softmax")
    expect(page.get_by_text("Your earlier run")).to_have_count(0)
    assert f"run={token}" in page.url


def test_another_browser_gets_the_settings_and_not_the_run(new_page, address):
    page = new_page("?seed=4")
    token = running(page)
    other = new_page(f"?seed=4&run={token}")  # a context of its own: other cookies
    until(other, "m.status === 'ready'")
    assert look(other, "token") != token
    assert look(other, "store.recipe.seed") == 4
    expect(other.get_by_text("The run is your own.")).to_be_visible()
    refused = other.context.request.get(f"{address}moeviz/run/{token}")
    assert refused.status == 403
    assert refused.json()["error"].startswith("This run belongs to another browser.")


def test_two_tabs_show_one_run_and_each_others_changes(new_page):
    one = new_page("?bias_rule=sign&u=0.01")
    token = running(one)
    two = one.context.new_page()
    two.set_default_timeout(60 * SECOND)
    two.goto(one.url)
    until(two, f"{DRAWN} && m.step > 30")
    assert look(two, "token") == token
    one.get_by_role("slider", name="Bias update speed u").focus()
    one.keyboard.press("End")
    until(two, "m.marks.some(mark => mark.label === 'u 0.01 → 0.1')")
    expect(two.get_by_role("slider", name="Bias update speed u")).to_have_attribute("aria-valuetext", "0.1")
    button(two, "Pause").click()
    until(one, "!m.playing")
    expect(button(one, "Run")).to_be_visible()
    assert len(look(one, "marks")) == 1


def test_the_charts_have_no_page_drawn_anew_under_the_visitors_hand(new_page):
    """Of two requests that come at once the first may be lost, and it must not be the visitor's."""
    one = new_page()
    running(one)
    two = one.context.new_page()
    two.set_default_timeout(60 * SECOND)
    two.goto(one.url)
    until(two, f"{DRAWN} && m.playing")
    one.evaluate(
        """() => {
            const real = window.fetch
            window.fetch = async (...asked) => {
                const answer = await real(...asked)
                if (!window.rests) window.dispatchEvent(new Event("keydown"))
                return answer
            }
        }"""
    )
    button(two, "Pause").click()
    until(one, "!m.playing && !m.agreed")
    one.wait_for_timeout(2000)
    assert not look(one, "agreed")
    expect(button(one, "Pause")).to_be_visible()
    one.evaluate("window.rests = true")
    expect(button(one, "Run")).to_be_visible()
    until(one, "m.agreed")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_a_page_whose_workers_were_killed_says_so_and_goes_on(watch):
    with serving() as place:
        page = watch(place)
        page.set_default_timeout(90 * SECOND)  # all processes anew, on whatever machine this is
        page.goto(place + "?speed=max")
        until(page, READY)
        running(page)
        step = look(page, "step")
        for pid in workers_of_this_process_tree():
            os.kill(pid, signal.SIGKILL)
        said = page.get_by_text("The process that trained this run ended unexpectedly at step")
        expect(said).to_be_visible(timeout=90 * SECOND)  # before a slow machine takes it away again
        until(page, f"m.step > {step} + 200")
        assert look(page, "epoch") == 1
        steps = page.evaluate("Array.from(__moeviz.store.step.slice(0, __moeviz.store.count))")
        assert steps == sorted(set(steps))
        assert page.get_by_role("alert").count() == 0
        page.context.close()


def test_a_run_outlasts_its_server_where_a_folder_is_given(watch, tmp_path, monkeypatch):
    monkeypatch.setenv("MOEVIZ_DATA", str(tmp_path))
    port = free_port()
    page = watch(f"http://127.0.0.1:{port}/", forgiven=RESTARTED)
    page.set_default_timeout(90 * SECOND)
    with serving(port=port) as place:
        page.goto(place + "?bias_rule=sign&u=0.01&speed=max")
        until(page, READY)
        run_to(page, 60)
        token, loss = look(page, "token"), look(page, "store.task_loss[window.__moeviz.store.count - 1]")
    with serving(port=port):
        until(page, f"m.token === '{token}' && m.epoch === 2 && m.status === 'ready' && m.step === 60")
        assert look(page, "store.task_loss[window.__moeviz.store.count - 1]") == loss
        run(page, 100)
        page.context.close()
