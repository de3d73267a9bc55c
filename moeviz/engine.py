"""How does the toy train, one step at a time? No idea that a screen exists.

Same recipe, same knobs at the same steps, same seed, same device: the same loads to the bit.
Shapes: L layers, E experts, T tokens in S sequences.
"""

from __future__ import annotations

import math
import time
from collections import deque

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from moeviz import balance, metrics
from moeviz.config import Knobs, Recipe, SettingsError, check
from moeviz.model import ToyMoE
from moeviz.routing import Routing
from moeviz.snapshot import Snapshot
from moeviz.tasks import make_task

WARM_UP_STEPS = 20
EVAL_EVERY = 25
# The model, the data and the protected sequences draw from streams of their own, so that a knob which needs more
# draws of one kind leaves the others as they were.
MODEL_STREAM, DATA_STREAM, PROTECTED_STREAM = 1, 2, 3


class TrainingDiverged(RuntimeError):
    """The loss or its gradient is no longer a number. The message is a sentence for people; the weights are as before
    this step."""


def available_devices() -> list[str]:
    """Devices that a recipe may name on this machine, the best first."""
    devices = ["cuda"] if torch.cuda.is_available() else []
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return [*devices, "cpu"]


class Engine:
    """A toy mixture of experts, its data and its optimizer.

    Args:
        recipe: what to build.
        knobs: settings of the first forward pass; each step brings its own.
        text: bytes for the text task in place of the standard library's.

    Raises:
        SettingsError: the recipe and knobs cannot go together, the device is not there, or the text is too short.
    """

    def __init__(self, recipe: Recipe, knobs: Knobs, text: bytes | None = None) -> None:
        check(recipe, knobs)
        self.recipe, self.knobs, self.step_number = recipe, knobs, 0
        self.device = _pick_device(recipe.device)
        if self.device == "cpu":
            torch.set_num_threads(1)  # with any other busy process a second thread costs more than it gains
        self.task = make_task(recipe, self.device, text)
        with torch.random.fork_rng():
            torch.manual_seed(_stream_seed(recipe.seed, MODEL_STREAM))
            self.model = ToyMoE(recipe, self.task.output_size).to(self.device)
        self.bias_LE = torch.zeros(recipe.num_layers, recipe.num_experts, device=self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, betas=(0.9, 0.99), fused=True)
        self._data = torch.Generator().manual_seed(_stream_seed(recipe.seed, DATA_STREAM))
        self._protect = torch.Generator().manual_seed(_stream_seed(recipe.seed, PROTECTED_STREAM))
        self._recent_loads: deque[np.ndarray] = deque(maxlen=metrics.DEAD_WINDOW - 1)
        self._clock = _Clock()

    @torch.no_grad()
    def observe(self) -> Snapshot:
        """The untrained model on held-out tokens: step 0, nothing learned, nothing dropped."""
        batch = self.task.held_out
        predictions, routings, kept_load_LE = self.model(batch.inputs, self.bias_LE, self.knobs)
        loss = float(self.task.loss(predictions, batch.targets))
        added = float(balance.added_loss(routings, self.knobs, self.recipe.num_sequences))
        return self._snapshot(loss, added, loss, self.bias_LE, routings, kept_load_LE)

    def step(self, knobs: Knobs) -> Snapshot:
        """One optimizer step and one bias step under these knobs.

        Raises:
            SettingsError: the knobs cannot go with the recipe; nothing has changed.
            TrainingDiverged: the loss or its gradient is NaN or infinite; weights and bias are as they were.
        """
        if knobs != self.knobs:
            check(self.recipe, knobs)
            self.knobs = knobs
        batch = self.task.batch(self._data)
        try:
            predictions, routings, kept_load_LE = self.model(batch.inputs, self.bias_LE, knobs, self._protected())
        except SettingsError as cause:
            raise TrainingDiverged(f"Training diverged at step {self.step_number + 1}: {cause}") from cause
        task_loss = self.task.loss(predictions, batch.targets)
        added_loss = balance.added_loss(routings, knobs, self.recipe.num_sequences)
        loss = float(task_loss.detach())
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        self._descend(task_loss + added_loss)
        bias_LE = self.bias_LE
        load_LE = torch.stack([routing.load_E for routing in routings])
        self.bias_LE = balance.BIAS_RULES[knobs.bias_rule](bias_LE, load_LE, knobs.u)
        self.step_number += 1
        eval_loss = self.evaluate() if self.step_number % EVAL_EVERY == 0 else math.nan
        snapshot = self._snapshot(loss, float(added_loss.detach()), eval_loss, bias_LE, routings, kept_load_LE)
        self._recent_loads.append(snapshot.load_LE.copy())  # the snapshot's own array belongs to whoever gets it
        return snapshot

    @torch.no_grad()
    def evaluate(self) -> float:
        """Task loss on held-out tokens. Evaluation never drops."""
        batch = self.task.held_out
        predictions, _, _ = self.model(batch.inputs, self.bias_LE, self.knobs)
        return float(self.task.loss(predictions, batch.targets))

    def _descend(self, loss: Tensor) -> None:
        warm_up = min(1.0, (self.step_number + 1) / WARM_UP_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = self.knobs.learning_rate * warm_up
        loss.backward()
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if not get_total_norm(gradients).isfinite():
            self.optimizer.zero_grad(set_to_none=True)
            raise self._diverged("the gradient is not finite")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _diverged(self, reason: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"Training diverged at step {self.step_number + 1}: {reason}. "
            f"Try a learning_rate under {self.knobs.learning_rate:g}, then reset."
        )

    def _protected(self) -> Tensor:
        """Tokens of this batch's protected sequences; drawn at every step, so that dropping can be toggled freely."""
        draw_S = torch.rand(self.recipe.num_sequences, generator=self._protect)
        protected_S = draw_S < self.knobs.protected_share
        return protected_S.repeat_interleave(self.recipe.sequence_length).to(self.device)

    def _snapshot(
        self,
        task_loss: float,
        added_loss: float,
        eval_loss: float,
        bias_LE: Tensor,
        routings: list[Routing],
        kept_load_LE: Tensor,
    ) -> Snapshot:
        recipe, knobs = self.recipe, self.knobs
        load_LE = torch.stack([routing.load_E for routing in routings]).cpu().numpy()
        kept_load_LE = kept_load_LE.cpu().numpy()
        groups = knobs.num_groups
        chosen = [routing.chosen_TK.cpu().numpy() for routing in routings] if groups > 1 else None
        return Snapshot(
            step=self.step_number,
            task_loss=task_loss,
            added_loss=added_loss,
            eval_loss=eval_loss,
            load_LE=load_LE,
            kept_load_LE=kept_load_LE,
            bias_LE=bias_LE.cpu().numpy().copy(),
            max_vio_L=metrics.max_vio(load_LE),
            fan_out_L=np.array([metrics.fan_out(chosen_TK, recipe.num_experts, groups) for chosen_TK in chosen])
            if chosen
            else np.ones(recipe.num_layers),
            dead_experts_L=metrics.dead_experts(sum(self._recent_loads, load_LE)),
            dropped_fraction_L=1 - kept_load_LE.sum(-1) / (recipe.tokens_per_step * knobs.top_k),
            fair=metrics.fair_router(recipe.tokens_per_step, knobs.top_k, recipe.num_experts),
            steps_per_second=self._clock.tick(),
        )


class _Clock:
    """Steps per second, smoothed over about ten steps; a pause does not count as one slow step."""

    PAUSE = 5.0  # a gap this many times longer than usual is a pause

    def __init__(self) -> None:
        self._last: float | None = None
        self._gap: float | None = None

    def tick(self) -> float:
        now = time.perf_counter()
        gap = now - self._last if self._last is not None else None
        self._last = now
        if gap is None or (self._gap is not None and gap > self.PAUSE * self._gap and gap > 0.2):
            self._gap = None  # begin measuring again with the next step
            return 0.0
        self._gap = gap if self._gap is None else 0.9 * self._gap + 0.1 * gap
        return 1 / self._gap


def _stream_seed(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])


def _pick_device(wanted: str) -> str:
    there = available_devices()
    if wanted == "auto":
        return there[0]
    if wanted not in there:
        raise SettingsError(f"device={wanted} is not on this machine. Choose auto or {' or '.join(there)}.")
    return wanted
