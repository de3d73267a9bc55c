"""What do options that several commands share say?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from moeviz import export, presets
from moeviz.config import TASK_DEFAULTS, TASKS, Knobs, Recipe, SettingsError, check, parse_settings

_BEGINNING = (
    click.option("--task", type=click.Choice(TASKS), default="skills", show_default=True, help="What the toy learns."),
    click.option(
        *("--preset", "preset_name"), default="no_balancing", show_default=True, metavar="NAME", help="Start here."
    ),
    click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change one setting; may be repeated."),
    click.option(
        *("--text", "text_file"), type=click.Path(path_type=Path), help="A file to learn instead (with --task text)."
    ),
    click.option(
        *("--settings", "settings_file"),
        type=click.Path(path_type=Path),
        help="Start with the settings of a file, which the page or --json wrote, in place of --task and --preset.",
    ),
)


def beginning(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that takes --task, --preset, --set, --text and --settings."""
    for option in reversed(_BEGINNING):
        command = option(command)
    return command


def base(task: str, preset_name: str, path: Path | None = None) -> tuple[Recipe, Knobs]:
    """Settings of --settings, or else of --task and --preset, before --set.

    Raises:
        SettingsError: there is no such preset, or the file holds no settings.
    """
    if path is not None:
        return export.read_settings(content(path))
    return Recipe(task=task, **TASK_DEFAULTS[task]), presets.preset(preset_name).knobs


def settings(base: tuple[Recipe, Knobs], changes: tuple[str, ...], seed: int | None = None) -> tuple[Recipe, Knobs]:
    """`base` with every --set and --seed.

    Raises:
        SettingsError: a change that names no setting or no value, or a combination that cannot be.
    """
    values = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise SettingsError(f"--set {change} has no value. Write --set NAME=VALUE, for example --set u=0.003.")
        values[name.strip()] = value
    if seed is not None:
        values["seed"] = str(seed)
    recipe, knobs = parse_settings(values, *base)
    check(recipe, knobs)
    return recipe, knobs


def text(path: Path | None, task: str) -> bytes | None:
    """What --text brings, None without it.

    Raises:
        SettingsError: the task reads nothing, or the file cannot be read.
    """
    if path is None:
        return None
    if task != "text":
        raise SettingsError(f"--text {path} needs a task that reads. Add --task text.")
    return content(path)


def content(path: Path, most: int = -1) -> bytes:
    """A file's bytes, or so many of them.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as fault:
        raise SettingsError(f"{path} cannot be read: {fault.strerror}. Name a file that exists.") from None
