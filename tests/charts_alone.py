"""What do the live charts need around them? A page with nothing else, and a run that does what a test tells it.

Modules, routes, what Streamlit's server does to answers, and the numbers are the real ones; in Streamlit's place stands
a page that mounts the component with the data that the real script would give it, and writes down what it is told. So
a page opens at once, and a run stands at the step where a test wants it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import uvicorn
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from streamlit.web.server.starlette.starlette_app import create_streamlit_middleware

from moeviz.config import Knobs, Recipe
from moeviz.live import component
from moeviz.live.routes import routes
from tests.browsing import drawn, until
from tests.stand_in_twins import StandInRun

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Charts</title>
<link rel="icon" href="data:,">
<style>
  :root { --st-font: sans-serif; --st-background-color: #ffffff; --st-text-color: #31333f; }
  @media (prefers-color-scheme: dark) { :root { --st-background-color: #0e1117; --st-text-color: #fafafa; } }
  body { margin: 0; padding: 124px 16px 16px; background: var(--st-background-color); color: var(--st-text-color); }
  /* What the Playground leaves them on a laptop. */
  @media (min-width: 1200px) { body { padding-left: 324px; padding-right: 36px; } }
</style>
<main></main>
<script type="module">
  import mount from "/loader.js"
  const parentElement = document.querySelector("main")
  const setTriggerValue = (name, value) => window.told.push([name, value])
  let release = () => {}
  document.addEventListener("keydown", ({ key }) => window.keys.push(key))
  window.script = (data) => (release = mount({ data: (window.data = data), parentElement, setTriggerValue }))
  window.leave = () => {
    release()
    delete window.__moeviz
    window.told = [] // what the charts told the script
    window.keys = [] // that nobody kept to himself
  }
  leave()
</script>
"""


class Runs(dict):
    """A host of runs, by token."""

    def is_near(self, token: str) -> bool:
        return True


RUNS = Runs()


@contextmanager
def serving_pages() -> Iterator[str]:
    """A server in a thread: the page, the component's loader, and the real routes; gives its address."""
    own = [
        Route("/", lambda request: HTMLResponse(PAGE)),
        Route("/loader.js", lambda request: Response(component.LOADER, media_type="text/javascript")),
    ]
    app = Starlette(routes=[*own, *routes(lambda: RUNS)], middleware=create_streamlit_middleware())
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", lifespan="off"))
    home = socket.create_server(("127.0.0.1", 0))  # who comes before the server is up waits
    thread = threading.Thread(target=server.run, kwargs={"sockets": [home]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{home.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        RUNS.clear()


def given(run, of):
    """The data that the component gets from a script that runs now."""
    state = run.state()
    known = {"playing": state.playing, "status": state.status, "version": run.version, "epoch": state.epoch}
    with mock.patch.object(component, "_mount", lambda data, **_: data):
        return component.live_charts(run.token, visit="one", known=known, key="", of=of, on_branch=lambda: None)


def new_run(twins=(), step=0, recipe=None, **knobs):
    """A run that has trained to a step."""
    run = StandInRun(Recipe(device="cpu", **recipe or {}), Knobs(**knobs), twins)
    run.train_to(step)
    RUNS[run.token] = run
    return run


def mount(page, run, of="run"):
    """The page's script runs for the first time; wait for the charts of a run, or of its twins."""
    page.evaluate("(data) => window.script(data)", given(run, of))
    catch_up(page, run)


def catch_up(page, run):
    """The page's script runs again, which has the charts ask at once; wait until they show all that the run has."""
    page.evaluate("(known) => window.script({ ...window.data, known })", given(run, "run")["known"])
    until(page, "m && m.drawn > 0 && m.complete && m.agreed")
    until(page, f"m.epoch === {run.epoch} && m.step === {run.step} && m.playing === {str(run.playing).lower()}")
    whole = "m.twins.every((lane) => lane.store.lastStep === m.step || lane.said.diverged)"
    until(page, f"!m.twins || (m.twins.length === {len(run.twins)} && {whole})")
    drawn(page)


def train_to(page, run, step):
    """Train, and wait until it is seen."""
    run.train_to(step)
    catch_up(page, run)


class Tab:
    """One page that shows one run after another: Plotly.js is read once."""

    def __init__(self, page, address):
        self.page = page
        page.goto(address)

    def show(self, run, of="run", size=(1280, 800), scheme="light"):
        """The charts of a run, or of its twins, as on a new page."""
        page = self.page
        manners = "{ smoothing: null, logValues: false, logSteps: false }"
        page.evaluate(f"() => {{ window.__moeviz?.view.set({manners}); window.leave(); scrollTo(0, 0) }}")
        page.mouse.move(0, 0)
        page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
        page.emulate_media(color_scheme=scheme)
        mount(page, run, of)
        return page
