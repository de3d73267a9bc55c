"""How does a researcher run the toy without a browser?"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from moeviz import export, params, presets, receipt
from moeviz.cli import options
from moeviz.cli.checking import check
from moeviz.cli.sweeping import sweep
from moeviz.config import KNOB_FIELDS, RECIPE_FIELDS, TASKS, Knobs, Recipe, SettingsError, show
from moeviz.snapshot import History

if TYPE_CHECKING:
    from moeviz.engine import Engine

PRINTED = (
    *("steps", "task_loss", "mtp_loss", "eval_loss", "max_vio_batch", "max_vio_global", "max_vio_floor", "straggler"),
    *("specialisation", "interference_router_ratio", "interference_trunk_ratio", "dropped_fraction", "dead_experts"),
    *("fan_out", "steps_per_second"),
)
WRITTEN = (*export.ENDINGS, ".html")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A playground for mixture-of-experts routing, without its page."""


main.add_command(sweep)
main.add_command(check)


@main.command("presets")
def list_presets() -> None:
    """List the presets: what each does and where it comes from."""
    for name, preset in presets.PRESETS.items():
        click.echo(f"{name:14}{preset.title}. {preset.expect} [{preset.source}]")


@main.command("settings")
def list_settings() -> None:
    """List every setting that --set takes, with its default."""
    for kind, known in (("Recipe: what is built", RECIPE_FIELDS), ("Knobs: how it is trained", KNOB_FIELDS)):
        click.echo(kind)
        for name, spec in known.items():
            click.echo(f"  {name:18}{show(spec.default):10}{spec.metadata['help'].replace('`', '')}")


@main.command("params")
@click.argument("name", metavar="NAME")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change the toy; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def count_parameters(name: str, changes: tuple[str, ...], as_json: bool) -> None:
    """Count the parameters of `toy` or a published model by formula, and those that one token uses.

    NAME: toy, deepseek-v3, deepseek-v2, mixtral-8x7b, olmoe or qwen3-30b-a3b.
    """
    try:
        counted, model = _count(name, changes)
    except SettingsError as refusal:
        raise click.ClickException(str(refusal)) from None
    if as_json:
        click.echo(json.dumps({"name": name} | params.summary(counted, model)))
        return
    click.echo(f"{counted.title:18}{'all':>12}{'active':>12}")
    for row in params.table(counted):
        click.echo(f"{row[0]:18}{row[1]:>12}{row[2]:>12}")
    if model:
        click.echo(f"Published: {params.show_published(model)} ({model.source}). {model.convention}")


@main.command(
    epilog="Printed: task_loss, mtp_loss (tokens further ahead, without its weight), max_vio_batch, max_vio_floor, "
    "straggler (busiest device / mean device, on paper), dropped_fraction and fan_out are means over the last 20 % of "
    "steps and over layers; max_vio_global is the MaxVio of the load summed over those steps; *_worst_layer (with "
    "--json) is the same of the worst layer; eval_loss and specialisation (the share of what there is to know about a "
    "token's skill or kind of text that its experts tell) are of held-out tokens after the last step, nothing dropped; "
    "interference_router_ratio and interference_trunk_ratio are |gradient of the added losses| / |gradient of the "
    "task|, means over the probed steps of the last 20 %; dead_experts counts experts under 1 % of the mean load in "
    "the last 20 steps, over all layers; steps_per_second is over the wall time of training. What was not measured is "
    "a dash, or null with --json. "
    "`python -m moeviz settings` lists what --set takes."
)
@options.beginning
@click.option("--steps", type=int, default=500, show_default=True, help="Optimizer steps, at least 1.")
@click.option("--seed", type=int, default=None, help="Short for --set seed=N.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write every step, as .parquet, .csv or .json; or as .html, a replay that any browser plays offline.",
)
@click.option(
    "--receipt",
    "receipt_file",
    type=click.Path(path_type=Path),
    help="Write what it takes to train this run again, for `python -m moeviz check`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def run(
    task: str,
    preset_name: str,
    changes: tuple[str, ...],
    steps: int,
    seed: int | None,
    text_file: Path | None,
    settings_file: Path | None,
    out: Path | None,
    receipt_file: Path | None,
    as_json: bool,
) -> None:
    """Train the toy and print what the page would show."""
    try:
        recipe, knobs = options.settings(options.base(task, preset_name, settings_file), changes, seed)
        if steps < 1:
            raise SettingsError(f"--steps {steps} trains nothing. Choose at least 1.")
        if out:
            export.check_ending(out, WRITTEN)
        result = train(recipe, knobs, steps, options.text(text_file, recipe.task), out, receipt_file)
    except SettingsError as refusal:
        raise click.ClickException(str(refusal)) from None
    if as_json:
        click.echo(json.dumps(result))
    else:
        for name in PRINTED:
            click.echo(f"{name:28}{'-' if result[name] is None else format(result[name], '.4g')}")
    if result["diverged"]:
        raise click.ClickException(result["diverged"])


@main.command(hidden=True)
@click.option("--steps", type=int, default=300, show_default=True)
@click.argument("out", type=click.Path(path_type=Path))
def record(out: Path, steps: int) -> None:
    """Record the start that a visitor sees before their own run: the default preset, as the live charts receive it."""
    from moeviz.live.wire import encode

    recipe, knobs = Recipe(device="cpu"), presets.preset("no_balancing").knobs
    history, *_ = _run(recipe, knobs, steps, None)
    header = {"epoch": 0, "status": "ready", "message": "", "playing": False, "version": 0, "marks": []}
    _, rows = history.since(-1)
    out.write_bytes(encode(rows, header | {"recipe": asdict(recipe), "knobs": asdict(knobs)}))


def train(
    recipe: Recipe, knobs: Knobs, steps: int, text: bytes | None, out: Path | None, receipt_file: Path | None = None
) -> dict[str, Any]:
    """Train with a progress bar on stderr; returns the summary, the settings and the versions.

    A run that diverges keeps the steps it made; `diverged` then holds the sentence.
    """
    from moeviz import machine

    history, engine, seconds, diverged = _run(recipe, knobs, steps, text)
    settings = {
        "recipe": asdict(recipe),
        "knobs": asdict(knobs),
        "device": engine.device,
        "versions": machine.versions(),
    }
    every, rows = history.since(-1)[1], _made(history)
    issued = receipt.issue(recipe, [(0, knobs)], every, text=text, **machine.circumstances(engine.device))
    if receipt_file:
        receipt_file.write_text(receipt.to_json(issued), encoding="utf-8")
    if out and out.suffix.lower() == ".html":
        _write_replay(out, recipe, knobs, every, issued)
    elif out:
        export.write(out, rows, settings)
    held_out = None if diverged else engine.examine()
    final = export.summarize_held_out(held_out.loss, held_out.joint_LEC) if held_out else {}
    rate = {"steps_per_second": engine.step_number / seconds, "diverged": diverged}
    return export.summarize(rows) | final | rate | settings


def _write_replay(out: Path, recipe: Recipe, knobs: Knobs, rows: np.ndarray, issued: receipt.Receipt) -> None:
    from moeviz.live import replay

    recorded = replay.Recorded(recipe, knobs, rows, versions={0: knobs})
    title, date = replay.title(recipe, knobs), f"{datetime.now():%Y-%m-%d}"
    out.write_bytes(replay.html([recorded], title=title, date=date, receipt=receipt.to_json(issued)))


def _made(history: History) -> np.ndarray:
    """All steps but step 0, which is kept only where there is no other."""
    return history.since(0 if history.count > 1 else -1)[1]


def _run(recipe: Recipe, knobs: Knobs, steps: int, text: bytes | None) -> tuple[History, Engine, float, str | None]:
    """The history with step 0, the engine, the seconds of training, and the sentence of a divergence if any."""
    from moeviz.engine import Engine, TrainingDiverged

    engine = Engine(recipe, knobs, text)
    history = History(recipe.num_layers, recipe.num_experts, capacity=steps + 2)
    history.append(engine.observe())
    diverged = None
    began = time.perf_counter()
    with click.progressbar(length=steps, label="Training", file=sys.stderr) as bar:
        try:
            for _ in range(steps):
                history.append(engine.step(knobs))
                bar.update(1)
        except TrainingDiverged as fault:
            diverged = str(fault)
    return history, engine, time.perf_counter() - began, diverged


def _count(name: str, changes: tuple[str, ...]) -> tuple[params.Count, params.Architecture | None]:
    if name == "toy":
        task = dict(change.partition("=")[::2] for change in changes).get("task", "").strip()
        recipe, knobs = options.settings(options.base(task if task in TASKS else "skills", "no_balancing"), changes)
        return params.count_toy(recipe, knobs.top_k), None
    model = params.architecture(name)
    if changes:
        raise SettingsError(f"--set {changes[0]} changes the toy, and {name} is as published. Leave --set out.")
    return params.count(model), model
