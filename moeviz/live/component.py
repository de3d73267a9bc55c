"""How do the live charts get onto a page?

A Streamlit component (v2) that carries almost nothing: its few lines of script load the real modules from our own
routes, and the data of a run never passes through a script run at all; the browser pulls it (`routes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import streamlit as st

from moeviz.live import assets, charts
from moeviz.live.routes import prefix

# Streamlit sends these lines again with every message, so they only fetch the module, which the browser keeps. What it
# will ask for is on its way before it is: one file after another would take four times there and back.
LOADER = """\
function ask(rel, href, more) {
  const link = Object.assign(document.createElement("link"), { rel, href, ...more })
  document.head.append(link)
}
export default function ({ data, parentElement, ...rest }) {
  window.__moevizAsked ??= {}
  const versioned = (name) => `${data.base}/${name}?v=${data.version}`
  const main = import(new URL(versioned(data.module), location.href))
  if (!window.__moevizAsked[data.module]) {
    window.__moevizAsked[data.module] = true
    ask("preload", versioned("style.css"), { as: "style" })
    if (data.fresh) ask("preload", versioned("start.bin"), { as: "fetch", crossOrigin: "anonymous" })
    ask("preload", versioned("../plotly.min.js"), { as: "script", fetchPriority: "low" })
  }
  main.then((m) => m.render({ data, parentElement, ...rest }))
  return () => main.then((m) => m.release(parentElement))
}
"""

_mount = st.components.v2.component("moeviz_live", js=LOADER, isolate_styles=False)

# What the charts are of: one run, or all twins of a run side by side. The module that draws them, and their texts.
_KINDS = {
    "run": ("main.js", charts.texts),
    "twins": ("compare.js", lambda: charts.texts_of_twins()["charts"]),
}


def live_charts(
    token: str,
    *,
    visit: str,
    known: dict[str, Any],
    key: str,
    of: Literal["run", "twins"] = "run",
    direct: Mapping[str, Sequence[float]] | None = None,
    recorded: bool = False,
    on_changed: Callable[[], None] | None = None,
    on_branch: Callable[[], None] | None = None,
) -> Any:
    """Mount the live charts of the run `token`, or of all its twins.

    `known` is what the script believes about the run: {"playing": bool, "status": str, "version": int, "epoch": int}.
    When the run turns out to be otherwise (it reached its target and paused, another tab changed it, it was released),
    `on_changed` is called once and the script runs again; `result.changed` then holds {"status", "playing", "message"}.

    `visit` names the session of the script. Where charts that are on a screen get another one, the server has forgotten
    the page; `on_changed` is called, and `result.changed["before"]` is the token of the run they showed until then.

    Where `on_branch` is given, a visitor who looks at a past step may branch there: it is called, and
    `result.branch` then holds {"step": the step shown, "twin": number of the twin to branch from}. Without it that is
    not offered.

    With `recorded` a recorded start fills the charts of one run until it has trained.

    `direct` names the knobs whose select slider has the knob's name as its key, each with the slider's values: the
    browser writes them to the run as soon as the slider is released, beside the script that runs anyway.
    """
    module, texts = _KINDS[of]
    recorded = recorded and "start.bin" in assets.static()
    data = _where(module) | {
        "token": token,
        "visit": visit,
        "known": known,
        "recorded": recorded,
        "fresh": recorded and known["epoch"] == 1 and known["status"] != "ready",
        "direct": {name: list(values) for name, values in (direct or {}).items()},
        "branch": on_branch is not None,
        "charts": texts(),
    }
    callbacks = {"on_changed_change": on_changed or _nothing, "on_branch_change": on_branch or _nothing}
    return _mount(key=key, data=data, **callbacks)


def live_panels(
    panels: Sequence[Mapping[str, Any]],
    shared: Mapping[str, Sequence[float]],
    *,
    name: str,
    key: str,
    wide: int = 3,
) -> None:
    """Draw the small multiples of a sweep, which stay where they are while it fills them.

    `st.plotly_chart` makes a new chart wherever a number has changed, so that all of them blink at every look.

    Args:
        panels: one per value, as `moeviz.figures.small.panel` gives it.
        shared: the axes of all of them, as `moeviz.figures.small.ranges` gives it.
        name: what files begin with that panels are saved in.
        wide: panels side by side, where there is room for so many.
    """
    data = _where("panels.js") | {"panels": panels, "shared": shared, "name": name, "wide": wide}
    _mount(key=key, data=data)


def _where(module: str) -> dict[str, str]:
    """What the loader must know."""
    return {"base": f"{prefix()}/live", "version": assets.VERSION, "module": module}


def _nothing() -> None:
    """Streamlit gives the result a value only where it has somebody to call."""
