"""How does the toy train, one step at a time? No idea that a screen exists.

Same recipe, same knobs at the same steps, same seed, same device: the same loads to the bit.
Shapes: L layers, E experts, T tokens in S sequences.
"""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from moeviz import balance, metrics, truth
from moeviz.config import Knobs, Recipe, SettingsError, check
from moeviz.model import ToyMoE
from moeviz.probe import Probe
from moeviz.routing import Routing
from moeviz.snapshot import NOT_PROBED, Interference, Snapshot
from moeviz.tasks import Batch, make_task

WARM_UP_STEPS = 20
EVAL_EVERY = 25
# The model, the data and the protected sequences draw from streams of their own, so that a knob which needs more
# draws of one kind leaves the others as they were.
MODEL_STREAM, DATA_STREAM, PROTECTED_STREAM = 1, 2, 3


class TrainingDiverged(RuntimeError):
    """The loss or its gradient is no longer a number. The message is a sentence for people; the weights are as before
    this step. A further step under other knobs goes on from the last good state."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What held-out tokens show: nothing learned, nothing dropped."""

    loss: float  # task loss
    joint_LEC: np.ndarray  # (token, expert) pairs that join each expert with each of the task's C domains


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
        self.bias = balance.start(recipe.num_layers, recipe.num_experts, knobs.bias_rule, self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, betas=(0.9, 0.99), fused=True)
        self._data = torch.Generator().manual_seed(_stream_seed(recipe.seed, DATA_STREAM))
        self._protect = torch.Generator().manual_seed(_stream_seed(recipe.seed, PROTECTED_STREAM))
        self._recent, self._lately = _Window(metrics.DEAD_WINDOW), _Window(metrics.GLOBAL_WINDOW)
        self._keep_good_state()
        self.wants_truth = False  # set it to have the identities checked, about every EVAL_EVERY steps
        self.truth: list[truth.Identity] | None = None  # the newest that were
        self._unchecked = True  # nothing has been checked yet under these knobs
        self._clock = _Clock()

    @property
    def bias_LE(self) -> Tensor:
        """The selection bias of all layers."""
        return self.bias.bias_LE

    @torch.no_grad()
    def observe(self) -> Snapshot:
        """The untrained model on held-out tokens: step 0, nothing learned, nothing dropped."""
        batch = self.task.held_out
        hidden_Td, routings, kept_load_LE = self.model.hidden(
            batch.inputs, self.bias_LE, self.knobs, token_id_T=batch.token_id_T
        )
        loss = float(self.task.loss(self.model.predict(hidden_Td), batch.targets))
        added = float(balance.added_loss(routings, self.knobs, self.recipe.num_sequences))
        further = float(self._further_loss(batch, hidden_Td))
        held_out = HeldOut(loss, self._joint_counts(batch, routings))
        return self._snapshot((loss, added, further), self.bias_LE, routings, kept_load_LE, held_out)

    def step(self, knobs: Knobs) -> Snapshot:
        """One optimizer step and one bias step under these knobs.

        Raises:
            SettingsError: the knobs cannot go with the recipe; nothing has changed.
            TrainingDiverged: the loss or its gradient is NaN or infinite; weights and bias are as they were and the
                step does not count. The next step under other knobs begins from the last good state.
        """
        if knobs != self.knobs:
            self._turn(knobs)
        batch = self.task.batch(self._data)
        seen, hidden_Td, routings, kept_load_LE = self._forward(batch)
        task_loss = self.task.loss(self.model.predict(hidden_Td), batch.targets)
        added_loss = balance.added_loss(routings, knobs, self.recipe.num_sequences)
        loss = float(task_loss.detach())
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        further_loss = self._further_loss(batch, hidden_Td)
        whole = task_loss + added_loss
        if self.model.further_ahead:
            whole = whole + knobs.mtp_weight * further_loss
        interference = self._descend(whole, self._probe(added_loss))
        bias_LE = self.bias_LE
        self.step_number += 1
        self.bias = balance.update(self.bias, routings, knobs, self.step_number)
        if seen:
            self.truth, self._unchecked = truth.check(seen, self.bias_LE, kept_load_LE, knobs), False
        held_out = self.examine() if self.step_number % EVAL_EVERY == 0 else None
        losses = (loss, float(added_loss.detach()), float(further_loss.detach()))
        snapshot = self._snapshot(losses, bias_LE, routings, kept_load_LE, held_out, interference)
        load_LE = snapshot.load_LE.copy()  # the snapshot's own array belongs to whoever gets it
        self._recent.append(load_LE)
        self._lately.append(load_LE)
        return snapshot

    def _turn(self, knobs: Knobs) -> None:
        check(self.recipe, knobs)
        self.knobs, self._unchecked = knobs, True
        if self._failed:
            self._go_back()
        self.bias = balance.under(self.bias, knobs.bias_rule)

    def _forward(self, batch: Batch) -> tuple[list[truth.Layer], Tensor, list[Routing], Tensor]:
        """What the identities need if they are due, the last hidden state, the routings and the kept loads."""
        try:
            with truth.watching(self.model.layers if self._truth_is_due() else ()) as seen:
                return seen, *self.model.hidden(
                    batch.inputs, self.bias_LE, self.knobs, self._protected(), batch.token_id_T
                )
        except SettingsError as cause:
            self._failed = True
            raise TrainingDiverged(f"Training diverged at step {self.step_number + 1}: {cause}") from cause

    def evaluate(self) -> float:
        """Task loss on held-out tokens. Evaluation never drops."""
        return self.examine().loss

    @torch.no_grad()
    def examine(self) -> HeldOut:
        """Task loss on held-out tokens, and which experts their domains go to (`metrics.relative_load` and more)."""
        batch = self.task.held_out
        predictions, routings, _ = self.model(batch.inputs, self.bias_LE, self.knobs, token_id_T=batch.token_id_T)
        return HeldOut(float(self.task.loss(predictions, batch.targets)), self._joint_counts(batch, routings))

    def _joint_counts(self, batch: Batch, routings: list[Routing]) -> np.ndarray:
        """(token, expert) pairs per expert and domain in each layer, padding left out."""
        domain_T, counts = batch.domain_T.cpu().numpy(), []
        for routing in routings:
            valid_TK = None if routing.valid_TK is None else routing.valid_TK.cpu().numpy()
            chosen_TK, sizes = routing.chosen_TK.cpu().numpy(), (self.recipe.num_experts, self.task.num_domains)
            counts.append(metrics.joint_counts(chosen_TK, domain_T, *sizes, valid_TK))
        return np.stack(counts)

    def _further_loss(self, batch: Batch, hidden_Td: Tensor) -> Tensor:
        """L_MTP without lambda: the mean over depths of the mean over positions with a target (arXiv 2412.19437, eq.
        24-25); NaN where nothing looks ahead."""
        if not self.model.further_ahead:
            return torch.tensor(math.nan)
        target_SN = batch.targets.view(-1, self.recipe.sequence_length)
        predictions = enumerate(self.model.look_ahead(batch.inputs, hidden_Td), start=1)
        return torch.stack([self.task.loss(part, target_SN[:, depth:].flatten()) for depth, part in predictions]).mean()

    def _truth_is_due(self) -> bool:
        """With every evaluation, and at once under new knobs."""
        return self.wants_truth and (self._unchecked or (self.step_number + 1) % EVAL_EVERY == 0)

    def _probe(self, added_loss: Tensor) -> Probe | None:
        every = self.knobs.probe_every
        return Probe(self.model, added_loss) if every and (self.step_number + 1) % every == 0 else None

    def _descend(self, loss: Tensor, probe: Probe | None) -> Interference:
        warm_up = min(1.0, (self.step_number + 1) / WARM_UP_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = self.knobs.learning_rate * warm_up
        loss.backward()
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if not get_total_norm(gradients).isfinite():
            self.optimizer.zero_grad(set_to_none=True)
            raise self._diverged("the gradient is not finite")
        interference = probe.compare() if probe else NOT_PROBED
        if self._failed or self.step_number % EVAL_EVERY == 0:
            self._keep_good_state()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return interference

    def _keep_good_state(self) -> None:
        """Remember weights, moments and bias from which loss and gradient are numbers."""
        state = (self.model.state_dict(), self.optimizer.state_dict(), self.bias)
        self._good, self._failed = copy.deepcopy(state), False

    def _go_back(self) -> None:
        """To the last good state, at most `EVAL_EVERY` updates old. Neither the steps nor the data are counted back."""
        weights, moments, bias = copy.deepcopy(self._good)
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(moments)
        self.bias = bias

    def _diverged(self, reason: str) -> TrainingDiverged:
        self._failed = True
        return TrainingDiverged(
            f"Training diverged at step {self.step_number + 1}: {reason}. "
            f"Try a learning_rate under {self.knobs.learning_rate:g}, then go on or reset."
        )

    def _protected(self) -> Tensor:
        """Tokens of this batch's protected sequences; drawn at every step, so that dropping can be toggled freely."""
        draw_S = torch.rand(self.recipe.num_sequences, generator=self._protect)
        protected_S = draw_S < self.knobs.protected_share
        return protected_S.repeat_interleave(self.recipe.sequence_length).to(self.device)

    def _snapshot(
        self,
        losses: tuple[float, float, float],
        bias_LE: Tensor,
        routings: list[Routing],
        kept_load_LE: Tensor,
        held_out: HeldOut | None,
        interference: Interference = NOT_PROBED,
    ) -> Snapshot:
        """`losses`: of the task, added for balance, and on tokens further ahead."""
        recipe, knobs = self.recipe, self.knobs
        load_LE = torch.stack([routing.load_E for routing in routings]).cpu().numpy()
        kept_load_LE = kept_load_LE.cpu().numpy()
        groups = knobs.num_groups
        chosen = [routing.chosen_TK.cpu().numpy() for routing in routings] if groups > 1 else None
        return Snapshot(
            step=self.step_number,
            task_loss=losses[0],
            added_loss=losses[1],
            mtp_loss=losses[2],
            eval_loss=held_out.loss if held_out else math.nan,
            load_LE=load_LE,
            kept_load_LE=kept_load_LE,
            bias_LE=bias_LE.cpu().numpy().copy(),
            max_vio_L=metrics.max_vio(load_LE),
            max_vio_global_L=metrics.max_vio(self._lately.sum_with(load_LE)),
            straggler_L=metrics.straggler(load_LE, knobs.num_devices),
            specialisation_L=metrics.specialisation(held_out.joint_LEC)
            if held_out
            else np.full(recipe.num_layers, math.nan),
            fan_out_L=np.array([metrics.fan_out(chosen_TK, recipe.num_experts, groups) for chosen_TK in chosen])
            if chosen
            else np.ones(recipe.num_layers),
            dead_experts_L=metrics.dead_experts(self._recent.sum_with(load_LE)),
            dropped_fraction_L=1 - kept_load_LE.sum(-1) / load_LE.sum(-1),
            interference=interference,
            fair=metrics.fair_router(recipe.tokens_per_step, knobs.top_k, recipe.num_experts),
            steps_per_second=self._clock.tick(),
        )


class _Window:
    """Sum of the loads of the last steps, the one now being made included, at a cost that no length changes."""

    def __init__(self, steps: int) -> None:
        self._loads: deque[np.ndarray] = deque()
        self._before = steps - 1
        self._sum: np.ndarray | int = 0

    def sum_with(self, load_LE: np.ndarray) -> np.ndarray:
        """The sum over the window that ends with this step."""
        return self._sum + load_LE

    def append(self, load_LE: np.ndarray) -> None:
        """This step is past."""
        self._loads.append(load_LE)
        self._sum = self._sum + load_LE
        if len(self._loads) > self._before:
            self._sum = self._sum - self._loads.popleft()


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
