"""What does the toy learn? A task draws batches and scores predictions; it knows nothing of experts.

A task is any object with `output_size`, `num_domains`, `batch(generator)`, `held_out` and `loss(predictions, targets)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor

from moeviz.config import Recipe


@dataclass(frozen=True, slots=True)
class Batch:
    """T tokens in the order of their sequences."""

    inputs: Tensor  # (T, d) vectors or (T,) bytes
    targets: Tensor  # (T, d) vectors or (T,) bytes
    domain_T: Tensor  # the skill or the kind of text that each token belongs to
    token_id_T: Tensor  # what a hash router knows of a token, 0 to 255: its byte, or the signs of 8 coordinates


class Task(Protocol):
    """What the engine asks of a task."""

    output_size: int
    num_domains: int  # skills, or kinds of text; a batch's domains are numbered from 0
    held_out: Batch  # never trained on

    def batch(self, generator: Generator) -> Batch:
        """Draw a training batch. The generator lives on the CPU, so every device sees the same data."""
        ...

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The task loss, a scalar."""
        ...


def make_task(recipe: Recipe, device: str, text: bytes | None = None) -> Task:
    """The task a recipe names; `text` replaces the text found on this machine.

    Raises:
        SettingsError: the text is too short.
    """
    if recipe.task == "text":
        from moeviz.tasks.text import TextTask

        return TextTask(recipe, device, text)
    from moeviz.tasks.skills import SkillsTask

    return SkillsTask(recipe, device)
