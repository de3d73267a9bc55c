"""How does a run outlast its process? Everything its next step depends on, in one file.

The format is safetensors: named tensors and a line of JSON, nothing that could be executed. A run that is loaded goes
on to the bit as if it had never stopped, on the same kind of device.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.engine import Engine, Twins

FORMAT = 2


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What a file holds: one run, or twins at the same step, by their ids."""

    recipe: Recipe
    knobs: dict[int, Knobs]
    states: dict[int, dict[str, torch.Tensor]]
    text: str | None  # names the text that they learn

    @property
    def step(self) -> int:
        """After which step they were saved.

        Raises:
            KeyError, StopIteration: there is nothing in it.
        """
        return int(next(iter(self.states.values()))["step"])


def save(
    engine: Engine | Twins, path: str | os.PathLike, durable: bool = True, ids: Sequence[int] | None = None
) -> None:
    """Write a run, or twins, to a file: whole or not at all, whatever happens to this process meanwhile.

    Args:
        durable: wait until it is on the disk, so that it also outlasts the machine. Costs more than the rest.
        ids: what the twins are called; None counts them from 0.

    Raises:
        OSError: there is no place for it; a file of that name is as it was.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(to_bytes(engine, ids))
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | os.PathLike, text: bytes | None = None) -> Engine | Twins:
    """The run of a file, or the twins.

    Args:
        text: the bytes that the run learned, if they were a person's own; they are not in the file.

    Raises:
        OSError: the file cannot be read.
        SettingsError: it is no checkpoint, a damaged one, or of another version or text.
    """
    return from_bytes(Path(path).read_bytes(), text, str(path))


def read(path: str | os.PathLike) -> Checkpoint:
    """What a file holds, of which twins may be picked; errors as for `load`."""
    return _unpack(Path(path).read_bytes(), str(path))


def to_bytes(engine: Engine | Twins, ids: Sequence[int] | None = None) -> bytes:
    """What `save` writes."""
    ids = range(len(engine.runs)) if ids is None else ids
    about = {
        "format": FORMAT,
        "recipe": asdict(engine.recipe),
        "knobs": {number: asdict(run.knobs) for number, run in zip(ids, engine.runs, strict=True)},
        "text": digest(engine),
    }
    named = zip(ids, engine.states(), strict=True)
    tensors = {f"{number}/{name}": value for number, state in named for name, value in state.items()}
    return safetensors.torch.save(tensors, metadata={"moeviz": json.dumps(about)})


def from_bytes(data: bytes, text: bytes | None = None, name: str = "this") -> Engine | Twins:
    """The run or the twins that `to_bytes` gave; errors as for `load`, which say `name`."""
    held = _unpack(data, name)
    knobs = list(held.knobs.values())
    engine = Engine(held.recipe, knobs[0], text) if len(knobs) == 1 else Twins(held.recipe, knobs, text)
    if held.text != digest(engine):
        raise SettingsError(f"{name} learned another text. Bring the text that it began with.")
    try:
        engine.restore_all(list(held.states.values()))
    except (KeyError, ValueError, RuntimeError) as cause:
        raise other_run(name, cause) from None
    return engine


def _unpack(data: bytes, name: str) -> Checkpoint:
    about = _about(data, name)
    if about.get("format") != FORMAT:
        raise SettingsError(
            f"{name} has checkpoint format {about.get('format')} and this version of moeviz reads {FORMAT}. "
            f"Load it with the version that wrote it."
        )
    try:
        recipe = Recipe(**about["recipe"])
        knobs = {int(number): Knobs(**values) for number, values in about["knobs"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise SettingsError(f"{name} has settings that this version of moeviz does not know: {cause}.") from None
    try:
        tensors = safetensors.torch.load(data)
        states: dict[int, dict[str, torch.Tensor]] = {number: {} for number in knobs}
        for key, value in tensors.items():
            number, _, inner = key.partition("/")
            states[int(number)][inner] = value
        held = Checkpoint(recipe, knobs, states, about.get("text"))
        _ = held.step
    except (KeyError, ValueError, RuntimeError, StopIteration, safetensors.SafetensorError) as cause:
        raise other_run(name, cause) from None
    return held


def other_run(name: str, cause: Exception) -> SettingsError:
    """The sentence about a file whose numbers are not what its description says."""
    return SettingsError(f"{name} does not hold the run that it describes ({cause}). Begin again instead.")


def _about(data: bytes, name: str) -> dict[str, Any]:
    """The description in the header: 8 bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length]) if len(data) - length >= 8 else {}
        about = json.loads(header["__metadata__"]["moeviz"])
    except (ValueError, KeyError, TypeError):
        about = None
    if not isinstance(about, dict):
        raise SettingsError(f"{name} is not a checkpoint of moeviz, or it is damaged. Choose another file.")
    return about


def digest(engine: Engine | Twins) -> str | None:
    """Names the text that a run learns; None for a task without one."""
    if engine.recipe.task != "text":
        return None
    from moeviz.tasks.text import standard_library

    return _hash(standard_library() if engine.text is None else (engine.text,))


@lru_cache(maxsize=16)
def _hash(corpora: tuple[bytes, ...]) -> str:
    """Megabytes, asked for again with every checkpoint of a run."""
    return hashlib.sha256(b"\0".join(corpora)).hexdigest()
