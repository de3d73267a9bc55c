"""How does a visitor sweep a knob: plan it, watch it, read what came of it?

Everything but the knob's values, the seeds and the steps is as the sidebar has it. What cannot be trained is refused
while it is planned, naming the value.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from moeviz import export, paired, sweep
from moeviz.config import KNOB_FIELDS, Knobs, Recipe, SettingsError, parse_value, show
from moeviz.figures import forest, small, theme
from moeviz.host.sweeping import SweepRun, check_steps
from moeviz.live.component import live_panels
from moeviz.snapshot import EVAL_EVERY
from moeviz.sweep import Result, Sweep
from moeviz.ui import dots, fields, saving, session, twins

EVERY = 1.0  # seconds between two looks
SEEDS = {1: "1 seed", 3: "3 seeds", 5: "5 seeds"}
STEPS = 500
MOST_BY_ITSELF = 4  # values of a knob that has no usual ones
COLUMNS = {
    "eval_loss": "%.4f",
    "max_vio_batch": "%.2f",
    "max_vio_floor": "%.2f",
    "specialisation": "%.2f",
    "dropped_fraction": "%.3f",
    "dead_experts": "%.1f",
}
EXAMPLE = Sweep(Recipe(), Knobs(bias_rule="sign"), "u", sweep.USUAL["u"], seeds=(0, 1, 2), steps=300)
SHOWN_OPEN = ("eval_loss", "max_vio_batch")


def plan(recipe: Recipe, knobs: Knobs) -> None:
    """Draw what is to be swept, and the way to start it."""
    offered = [name for name in twins.SETTINGS if not sweep.needs(name, recipe, knobs)]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        name = st.selectbox(
            "Knob to vary",
            offered,
            offered.index("u") if "u" in offered else 0,
            key="sweep_field",
            format_func=twins.title,
            width=260,
            persist_state="session",
        )
        listed = _values(name, recipe, knobs)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        seeds, steps = _size()
        planned, refusal = planned_of(recipe, knobs, name, listed, seeds, steps)
        session.button(
            "Start",
            key="sweep_start",
            type="primary",
            icon=":material/play_arrow:",
            disabled=planned is None,
            on_click=_start,
        )
        _not_offered(offered, recipe, knobs)
    if refusal:
        st.warning(refusal, icon=":material/block:")


def _start() -> None:
    """What the controls hold now: the page that was clicked may have been drawn before the last of them changed."""
    me, name = session.visitor(), session.value("sweep_field")
    listed, seeds, steps = map(session.value, (f"sweep_values_{name}", "sweep_seeds", "sweep_steps"))
    planned, refusal = planned_of(me.recipe, me.knobs, name, listed, seeds, steps)
    if planned is None:
        session.say(refusal)
    else:
        session.start_sweep(planned)


def _size() -> tuple[int, int]:
    """How many seeds and steps."""
    seeds = st.segmented_control(
        "Each from",
        SEEDS,
        default=1,
        key="sweep_seeds",
        format_func=SEEDS.get,
        required=True,
        persist_state="session",
        help="Every value begins with the same weights and sees the same batches, seed by seed. Three seeds give the "
        "differences a first interval.",
    )
    steps = st.number_input(
        "Steps",
        EVAL_EVERY,
        20_000,
        STEPS,
        EVAL_EVERY,
        key="sweep_steps",
        width=150,
        persist_state="session",
        help=f"Of each run. Held-out tokens are evaluated every {EVAL_EVERY} steps, and figures are of the last.",
    )
    return seeds, steps


def planned_of(
    recipe: Recipe, knobs: Knobs, field: str, texts: Sequence[str], seeds: int, steps: int
) -> tuple[Sweep | None, str]:
    """The sweep that was asked for, or the sentence that refuses it."""
    try:
        values = tuple(text if field == "balancing" else parse_value(field, text) for text in texts)
        chosen = tuple(range(recipe.seed, recipe.seed + seeds))
        found = Sweep(recipe, knobs, field, values, chosen, steps)
        check_steps(found)
    except SettingsError as refusal:
        return None, str(refusal)
    return found, ""


def _values(name: str, recipe: Recipe, knobs: Knobs) -> list[str]:
    possible = [value for value in twins.values(name, recipe, knobs) if sweep.can_be_had(recipe, knobs, name, value)]
    offered, usual = list(map(show, possible)), list(map(show, sweep.suggested(name, recipe, knobs)))
    usual = usual or offered[:MOST_BY_ITSELF]
    labels = {show(value): label for value, label in fields.LABELS.get(name, {}).items()}
    takes_more = name != "balancing" and not KNOB_FIELDS[name].metadata["choices"]
    return st.multiselect(
        "Values",
        list(dict.fromkeys([*offered, *usual])),
        usual,
        key=f"sweep_values_{name}",
        format_func=lambda text: labels.get(text, text),
        accept_new_options=takes_more,
        placeholder="Choose or type a value" if takes_more else "Choose values",
        width="stretch",
        persist_state="session",
    )


def _not_offered(offered: Sequence[str], recipe: Recipe, knobs: Knobs) -> None:
    missing = {name: sweep.needs(name, recipe, knobs) for name in twins.SETTINGS if name not in offered}
    if not missing:
        return
    with st.popover(
        "Other knobs", key="other_knobs", help="Knobs that would do nothing beside the settings as they are, and why."
    ):
        for name, why in missing.items():
            st.markdown(f"**{twins.title(name)}**: {why}")


def example() -> None:
    """Offer a sweep to somebody who has none yet."""
    with st.container(border=True):
        st.markdown(
            "**No sweep yet.** Choose a knob above and press Start, or see how the speed of the loss-free bias decides "
            "between collapse, balance and overshooting: five speeds from three seeds, 300 steps each."
        )
        session.button(
            "Start the example sweep",
            key="sweep_example",
            icon=":material/science:",
            on_click=session.start_sweep,
            args=(EXAMPLE,),
        )


def watch(sweep_run: SweepRun) -> None:
    """Draw how far it is, filling by itself while it runs."""
    running = sweep_run.progress().status == "running"
    st.fragment(_watched, run_every=EVERY if running else None)(sweep_run, running)


def _watched(sweep_run: SweepRun, was_running: bool) -> None:
    sweep_run.advance()
    dots.take_in_cells(session.visitor().finds.dots, sweep_run.sweep, sweep_run.results)
    told = sweep_run.progress()
    if was_running and told.status != "running":
        st.rerun()  # the page as a whole: its timer ends, and results stand below
    swept = sweep_run.sweep
    st.markdown(
        f"**{twins.title(swept.field)}**, {len(swept.values)} values from {_seeds(swept)}, {swept.steps:,} steps"
    )
    if told.status == "running":
        with st.container(horizontal=True, vertical_alignment="center"):
            st.progress(told.made / told.steps, f"{told.done} of {told.cells} runs done, {_remaining(told)}")
            session.button("Cancel", key="sweep_cancel", icon=":material/stop:", on_click=sweep_run.cancel,
                      help="Runs that are done are kept.")  # fmt: skip
    if told.message:
        st.info(told.message, icon=":material/hourglass_top:" if told.status == "running" else ":material/error:")
    if told.status == "cancelled":
        st.info(f"Cancelled: {told.done} of {told.cells} runs are done and kept.", icon=":material/stop_circle:")
    _panels(sweep_run)


def _remaining(told: Any) -> str:
    if told.message:
        return "waiting"
    if told.remaining_seconds is None:
        return "measuring the pace"
    seconds = round(told.remaining_seconds)
    return f"about {seconds} s left" if seconds < 90 else f"about {round(seconds / 60)} min left"


def _seeds(swept: Sweep) -> str:
    first, last = swept.seeds[0], swept.seeds[-1]
    return f"seed {first}" if first == last else f"seeds {first} to {last}"


def _panels(sweep_run: SweepRun) -> None:
    swept, rows, notes = sweep_run.sweep, {}, {}
    for result in sweep_run.results:
        rows[result.cell] = result.rows
        if result.diverged:
            notes.setdefault(result.cell.value, []).append(f"seed {result.cell.seed} diverged")
    rows |= {cell: own for cell, own in sweep_run.live() if len(own)}
    drawn = []
    for value in swept.values:
        own = {seed: rows[seed, value] for seed in swept.seeds if (seed, value) in rows}
        drawn.append(small.panel(swept.label(value), own, ", ".join(notes.get(value, []))))
    live_panels(
        drawn,
        small.ranges(list(rows.values()), swept.steps),
        name=f"moeviz-sweep-{swept.field}",
        key="sweep_panels",
        wide=4 if len(drawn) % 4 == 0 or len(drawn) > 6 else 3,
    )
    if rows:
        st.caption(
            "Over steps, a line style per seed. Blue: MaxVio; dashed grey: what a fair router shows. Orange: task loss."
        )


def results(sweep_run: SweepRun) -> None:
    """Draw what came of it: a table, differences with their intervals, files."""
    swept, found = sweep_run.sweep, sweep_run.results
    if not found:
        return
    for result in found:
        if result.diverged:
            st.warning(f"{swept.label(result.cell.value)}, seed {result.cell.seed}: {result.diverged}")
    st.markdown("**Means over seeds.** Held-out figures are of the last step, others of the last 20 % of steps.")
    st.dataframe(
        table(swept, found),
        hide_index=True,
        column_config={
            name: st.column_config.NumberColumn(theme.TITLES.get(name, "fair router"), format=form)
            for name, form in COLUMNS.items()
        },
    )
    _files(swept, found)
    saving.choice()
    _differences(swept, found)


def table(swept: Sweep, found: Sequence[Result]) -> pd.DataFrame:
    """A line per value: the means over the seeds that did not diverge."""
    lines = []
    for value in swept.values:
        own = [result for result in found if result.cell.value == value and not result.diverged]
        diverged = sum(result.diverged != "" for result in found if result.cell.value == value)
        line: dict[str, Any] = {
            swept.field: show(value),
            "seeds": f"{len(own)} and {diverged} diverged" if diverged else str(len(own)),
        }
        for name in COLUMNS:
            known = [result.summary[name] for result in own if result.summary[name] is not None]
            line[name] = statistics.fmean(known) if known else None
        lines.append(line)
    return pd.DataFrame(lines)


def _differences(swept: Sweep, found: Sequence[Result]) -> None:
    base = st.selectbox(
        "Compared with",
        swept.values,
        swept.values.index(swept.usual_base),
        key="sweep_base",
        format_func=swept.label,
        width=260,
        help="The same seed has the same weights and batches under every value, so differences are taken seed by seed.",
    )
    told = sweep.comparisons(swept, found, base)
    drawn = [[(swept.label(one.value), one.difference) for one in told if one.figure == name] for name in SHOWN_OPEN]
    for column, name, rows in zip(st.columns(2), SHOWN_OPEN, drawn, strict=True):
        column.plotly_chart(
            forest.figure(name, rows, swept.label(base)),
            key=f"forest_{name}",
            config=saving.config(f"differences-{name}"),
            alt=f"Differences in {theme.TITLES[name]} to {swept.label(base)}; the sentences below say the same.",
        )
    st.caption(f"Dots: mean differences. Bars: {paired.INTERVAL}s over seeds. Open dots: cannot be told apart from 0.")
    sentences(
        {
            swept.label(value): [(one.figure, one.difference) for one in told if one.value == value]
            for value in swept.values
            if value != base
        },
        swept.label(base),
    )


def sentences(told: dict[str, list[tuple[str, paired.Difference]]], base: str) -> None:
    """What may be said of each setting. A figure that is the same under all of them tells nothing and is left out."""
    every = [pair for own in told.values() for pair in own]
    telling = {name for name, one in every if not one.mean == one.low == one.high == 0}
    with st.expander("Differences in words", expanded=True):
        for label, own in told.items():
            said = [paired.sentence(theme.TITLES[name], one, base) for name, one in own if name in telling]
            st.markdown(f"**{label}**\n" + "\n".join(f"- {sentence}" for sentence in said))


def _files(swept: Sweep, found: Sequence[Result]) -> None:
    name = f"moeviz-sweep-{swept.field}"
    with st.container(horizontal=True, width="content"):
        for form, title, media in (
            ("parquet", "Parquet", "application/vnd.apache.parquet"),
            ("csv", "CSV", "text/csv"),
        ):
            st.download_button(
                title,
                partial(file_of, swept, list(found), form),
                f"{name}.{form}",
                media,
                key=f"sweep_{form}",
                icon=":material/download:",
                on_click="ignore",
                help="Every step of every run that is done, with its seed and value.",
            )


def file_of(swept: Sweep, found: Sequence[Result], form: str) -> bytes:
    """Every step of the cells that are done, as `python -m moeviz sweep --out` writes them, and what the sweep was."""
    cells = [
        {"seed": result.cell.seed, "value": result.cell.value, "diverged": result.diverged or None} | result.summary
        for result in found
    ]
    finished = {result.cell for result in found}
    missing = [list(cell) for cell in swept.cells if cell not in finished]
    told = sweep.describe(swept) | {"cells": cells, "missing": missing}
    return export.to_bytes(sweep.rows(swept, found), told, form)
