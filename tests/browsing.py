"""What tests in a browser share: servers of their own, pages that are watched, and a visitor's hands and eyes."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path

import pytest
from playwright.sync_api import Error, expect, sync_playwright

from tests.install_chromium import find

ROOT = Path(__file__).parents[1]
ARTIFACTS = ROOT / "test-artifacts"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SECOND = 1000
VIEWPORT = {"width": 1280, "height": 800}
LOOKS = 50  # milliseconds between two; the default, each frame, has the browser make frames
# What a page logs whose server ended and came back: nothing answers, then nobody knows its run.
RESTARTED = "ERR_CONNECTION_REFUSED|server endpoint|server is not responding|disconnected from server|status of 404"
READY = "m && m.drawn > 0 && m.status === 'ready'"
FEED = """
    // Steps from `from` to `until` as the server would send them, with a spike, a dip and a change of settings.
    (store, from, until) => {
        const n = until - from
        const columns = Object.fromEntries([...store.columns].map(([name, { width, data }]) =>
            [name, new data.constructor(n * width).fill(name === "eval_loss" ? NaN : 1)]))
        for (let i = 0; i < n; i++) {
            const step = from + i
            columns.step[i] = step
            columns.version[i] = Number(step >= 1777)
            columns.max_vio[i] = step === 1234 ? 50 : 1 + ((step * 7919) % 100) / 100
            columns.task_loss[i] = step === 777 ? 0.25 : 1 + ((step * 104729) % 100) / 100
            if (step % 25 === 0) columns.eval_loss[i] = step / 1e6
        }
        store.append({ n }, columns)
    }
"""
expect.set_options(timeout=60 * SECOND)  # no bound of the product: a busy machine needs seconds to begin with


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(app="app.py", port=None, listen="127.0.0.1", env=None):
    """A server of our own, started with the README's command; gives its address. `listen=None`: to everybody."""
    port = port or free_port()
    command = [sys.executable, "-m", "streamlit", "run", app, f"--server.port={port}"]
    command += [f"--server.address={listen}"] if listen else []
    with tempfile.TemporaryFile() as log:  # a pipe that nobody reads would fill
        server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for(f"http://127.0.0.1:{port}/_stcore/health")
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait(timeout=60)
            log.seek(0)
            printed = log.read().decode()
    assert "Traceback" not in printed, printed
    ours = not app.startswith("tests/")
    assert not ours or f"http://{listen or 'localhost'}:{port}" in printed, "the address is printed"


def _wait_for(url, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def servers():
    """Gives the address of a server for what is to be served; whoever asks for the same later gets the same server.

    A run is held soon after its page was closed, and the next test has the cores.
    """
    env = os.environ | {"MOEVIZ_WORKERS": "1", "MOEVIZ_PAUSE_AFTER": "3"}
    with ExitStack() as started:
        yield cache(lambda app: started.enter_context(serving(app, env=env)))


@pytest.fixture(scope="module")
def app():
    """What the module's server serves; a module may have its own."""
    return "app.py"


@pytest.fixture(scope="module")
def address(app, servers):
    return servers(app)


@pytest.fixture(scope="session")
def browser():
    path = find()
    if path is None:
        reason = "no Chromium is installed and none could be; `python -m tests.install_chromium` says why"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield Browser(browser)
        browser.close()


class Browser:
    """Chromium, whose pages are used again: the next address opens in a third of the time, since the process of a page
    that was open has the scripts compiled. It finds no cookies and nothing stored."""

    def __init__(self, browser):
        self._browser, self._resting = browser, []

    def new_page(self, own=False, **options):
        """A page in a context of its own; `own`: a new one, that may be given back all the same."""
        if self._resting and not own and not options:
            return self._resting.pop()
        page = self._browser.new_context(**{"viewport": VIEWPORT} | options).new_page()
        page.set_default_timeout(120 * SECOND)
        page.again = not own and not options
        return page

    def take_back(self, page):
        """Nothing is left of what a test did; what cannot be undone, such as a script for every page, needs `own`."""
        try:
            if page.again and not page.is_closed():
                self._clear(page)
                self._resting.append(page)
                return
        except Error:  # a page that a failure left without an answer
            pass
        page.context.close()

    def _clear(self, page):
        for other in page.context.pages:
            if other is not page:
                other.close()
        page.unroute_all(behavior="ignoreErrors")
        page.mouse.move(0, 0)
        with suppress(Error):  # not so where a server was gone before anything was there
            page.evaluate("localStorage.clear(); sessionStorage.clear()")
        page.goto("about:blank")
        page.context.clear_cookies()
        page.context.clear_permissions()
        page.set_viewport_size(VIEWPORT)
        page.emulate_media(media="null", color_scheme="null", reduced_motion="null", forced_colors="null")


@pytest.fixture(autouse=True)
def _no_loop_of_the_browsers(request):
    """Playwright's event loop counts as running in this thread until the browser is closed, and tests without a page
    may want one of their own."""
    loop = asyncio._get_running_loop()
    if loop is None or "browser" in request.fixturenames:
        yield
        return
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(loop)


@contextmanager
def watched_pages(browser, name):
    """Gives empty pages, each in a context that it shares with no other, new if it is to be its `own`. It is a fault if
    one logs an error or asks beyond its home.

    Home is an address, with all that is below it, or a file alone. `forgiven` is an expression for the messages that
    a test itself provokes, `forgive` takes another from then on; nothing forgives an exception on a page. Each page
    that is open at the end is pictured where something failed.
    """
    faults, pages, later, ends = [], [], [], ExitStack()

    def open_page(home, logged=("error",), forgiven="(?!)", **options):
        def noticed(message):
            text, url = message.text, message.location["url"]
            # Opened at another page than the first, Streamlit looks for its server below that page's address first.
            astray = "404" in text and re.match(re.escape(home) + r"\w+/_stcore/", url)
            if message.type in logged and not astray and not re.search("|".join([forgiven, *later]), text):
                faults.append(f"{text} ({url})")

        def asked(request):
            there = request.url.startswith(home) if home.endswith("/") else request.url == home
            if not there and not request.url.startswith(("data:", "blob:")):
                faults.append(f"asked {request.url}")

        page = browser.new_page(**options)
        heard = {"weberror": lambda error: faults.append(f"error on the page: {error.error}")}
        heard |= {"console": noticed, "request": asked}
        for event, hear in heard.items():
            page.context.on(event, hear)
            ends.callback(page.context.remove_listener, event, hear)
        pages.append(page)
        return page

    def picture():
        ARTIFACTS.mkdir(exist_ok=True)
        for number, page in enumerate(pages):
            with suppress(Error):  # one that is closed, or answers nothing
                page.screenshot(path=ARTIFACTS / f"{name}-{number}.png", timeout=10 * SECOND)

    open_page.states = lambda: [*faults, *(_state(page) for page in pages)]
    open_page.picture, open_page.forgive = picture, later.append
    try:
        yield open_page
    except BaseException as error:
        picture()
        for state in open_page.states():
            error.add_note(state)
        raise
    finally:
        if faults:
            picture()
        for page in pages:
            browser.take_back(page)
        ends.close()
    assert not faults, "\n".join(faults)


def _state(page):
    """A page in a few lines, for who reads of a failure: what its charts know, and what is said above them."""
    if page.is_closed():
        return "a closed page"
    look = r"""() => {
        const script = document.querySelector("[data-test-script-state]")?.dataset.testScriptState
        const { status, step, playing, complete, agreed, writes, marks } = window.__moeviz ?? {}
        const main = document.querySelector(".stMainBlockContainer") ?? document.body
        const said = main.innerText.replace(/\s+/g, " ").slice(0, 300)
        return JSON.stringify({ script, status, step, playing, complete, agreed, writes, marks, said })
    }"""
    try:
        return f"{page.url} {page.wait_for_function(look, timeout=5 * SECOND).json_value()}"
    except Error as error:
        return f"{page.url} answers nothing: {error}"


PAGES = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Beside a failure stands how its pages were: where nobody sees the pictures it is all that there is."""
    report = yield
    if report.failed and report.when == "call" and PAGES in item.stash:
        report.sections += [("a page", state) for state in item.stash[PAGES].states()]
        item.stash[PAGES].picture()
    return report


@pytest.fixture
def watch(browser, request):
    with watched_pages(browser, request.node.name) as open_page:
        request.node.stash[PAGES] = open_page
        yield open_page


@pytest.fixture
def new_page(watch, address):
    """Opens watched pages of the module's server, and waits until their charts are whole."""

    def open_page(query="", **options):
        page = watch(address, **options)
        page.goto(address + query)
        until(page, "m && m.drawn > 0 && m.complete")
        return page

    return open_page


def look(page, expression):
    return page.evaluate(f"window.__moeviz.{expression}")


def until(page, condition):
    """Wait for a JavaScript condition on `m`, what the live charts know."""
    page.wait_for_function(f"(() => {{ const m = window.__moeviz; return {condition} }})()", polling=LOOKS)


def feed(page, begin, end):
    """Give the charts such steps without a server."""
    page.evaluate(f"({FEED})(window.__moeviz.store, {begin}, {end})")


def fixed(value, digits):
    """A number as the page writes it: halfway it goes up, where Python goes to the even neighbour. MaxVio is often
    halfway, a number of tokens over the balanced 128."""
    return str(Decimal(float(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def settle(page):
    """Wait until the script of the page has rested for a while, and its effects have reached the charts, which have
    asked meanwhile and have nothing to tell it."""
    page.evaluate(
        """() => new Promise((resolve) => {
            const app = document.querySelector("[data-test-script-state]")
            let since = performance.now()
            let before = window.__moeviz // a new one with every answer
            const timer = setInterval(() => {
                const m = window.__moeviz
                const live = m?.here()
                if (app.dataset.testScriptState !== "notRunning" || (live && !m.agreed)) {
                    since = performance.now()
                    before = m
                }
                if (performance.now() - since < 1000 || (live && m === before)) return
                clearInterval(timer)
                resolve()
            }, 20)
        })"""
    )


def drawn(page):
    """Wait until all that the charts have is drawn, which is at the next frame."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def button(page, name):
    # "Run to…" is on the page some tenths of a second before "Run".
    return page.get_by_role("button", name=re.compile(f"^{name}\\b(?! to)")).first


def choose(page, label, option):
    page.get_by_role("combobox", name=label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()
    expect(page.get_by_role("combobox", name=label, exact=True)).to_have_value(option)


def to(page, title):
    page.get_by_role("link", name=title, exact=True).first.click()


def to_formulas_and_back(page):
    to(page, "Formulas and code")
    expect(page.get_by_role("heading", name="Formulas and code", exact=True)).to_be_visible()
    to(page, "Playground")


def run(page, past):
    """Train on until after a step."""
    button(page, "Run").click()
    until(page, f"m.step > {past} && m.playing && !m.recorded")


def pause(page):
    button(page, "Pause").click()
    until(page, "!m.playing")


def train(page, past):
    """Train until after a step, and stop there."""
    run(page, past)
    pause(page)


def run_to(page, step):
    """Train to a step exactly, from the menu that asks for it."""
    button(page, "Run to").click()
    field = page.get_by_role("spinbutton", name="Step", exact=True)
    field.fill(str(step))
    field.press("Enter")
    button(page, "Run to this step").click()
    page.keyboard.press("Escape")
    until(page, f"m.step === {step} && !m.playing")


def drag(page, start, end):
    """With the mouse, between two places on the page."""
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=4)
    page.mouse.up()
