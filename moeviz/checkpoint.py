"""How does a run outlast its process? Everything its next step depends on, in one file.

The format is safetensors: named tensors and a line of JSON, nothing that could be executed. A run that is loaded goes
on to the bit as if it had never stopped, on the same kind of device.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.engine import Engine

FORMAT = 1


def save(engine: Engine, path: str | os.PathLike, durable: bool = True) -> None:
    """Write a run to a file: whole or not at all, whatever happens to this process meanwhile.

    Args:
        durable: wait until it is on the disk, so that it also outlasts the machine. Costs more than the rest.

    Raises:
        OSError: there is no place for it; a file of that name is as it was.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(to_bytes(engine))
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | os.PathLike, text: bytes | None = None) -> Engine:
    """The run of a file.

    Args:
        text: the bytes that the run learned, if they were a person's own; they are not in the file.

    Raises:
        OSError: the file cannot be read.
        SettingsError: it is no checkpoint, a damaged one, or of another version or text.
    """
    return from_bytes(Path(path).read_bytes(), text, str(path))


def to_bytes(engine: Engine) -> bytes:
    """What `save` writes."""
    about = {
        "format": FORMAT,
        "recipe": asdict(engine.recipe),
        "knobs": asdict(engine.knobs),
        "text": _digest(engine),
    }
    return safetensors.torch.save(engine.state(), metadata={"moeviz": json.dumps(about)})


def from_bytes(data: bytes, text: bytes | None = None, name: str = "this") -> Engine:
    """The run that `to_bytes` gave; errors as for `load`, which say `name`."""
    about = _about(data, name)
    if about.get("format") != FORMAT:
        raise SettingsError(
            f"{name} has checkpoint format {about.get('format')} and this version of moeviz reads {FORMAT}. "
            f"Load it with the version that wrote it."
        )
    try:
        recipe, knobs = Recipe(**about["recipe"]), Knobs(**about["knobs"])
    except (KeyError, TypeError) as cause:
        raise SettingsError(f"{name} has settings that this version of moeviz does not know: {cause}.") from None
    engine = Engine(recipe, knobs, text)
    if about.get("text") != _digest(engine):
        raise SettingsError(f"{name} learned another text. Bring the text that it began with.")
    try:
        engine.restore(safetensors.torch.load(data))
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as cause:
        raise SettingsError(f"{name} does not hold the run that it describes ({cause}). Begin again instead.") from None
    return engine


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


def _digest(engine: Engine) -> str | None:
    """Names the text of a run; None for a task without one."""
    if engine.recipe.task != "text":
        return None
    from moeviz.tasks.text import standard_library

    return _hash(standard_library() if engine.text is None else (engine.text,))


@lru_cache(maxsize=16)
def _hash(corpora: tuple[bytes, ...]) -> str:
    """Megabytes, asked for again with every checkpoint of a run."""
    return hashlib.sha256(b"\0".join(corpora)).hexdigest()
