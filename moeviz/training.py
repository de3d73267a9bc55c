"""What happens in one step?

Runs of one recipe are trained together, and a run by itself is a stack of one: weights, hidden states, biases, routings
and losses carry the axis of runs in front. Shapes: R runs, L layers, E experts, T tokens in S sequences.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from moeviz import balance, metrics, truth
from moeviz.adamw import AdamW
from moeviz.config import Knobs, Recipe, SettingsError, check
from moeviz.model import Decision, ToyMoE
from moeviz.probe import Probe
from moeviz.routing import Routing
from moeviz.snapshot import ALONE, EVAL_EVERY, NOT_PROBED, Apart, Interference, Snapshot
from moeviz.tasks import Batch, make_task
from moeviz.together import groups_of

WARM_UP_STEPS = 20
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


@dataclass(frozen=True, slots=True)
class _Good:
    """A state from which loss and gradient are numbers."""

    weights: list[Tensor]
    moments: list[dict[str, Tensor]]
    bias: balance.BiasState


@dataclass(frozen=True, slots=True)
class _Look:
    """What one pass has to tell, on the processor."""

    task_loss_R: list[float]
    added_loss_R: list[float]
    further_loss_R: list[float]
    gradient_norm_R: list[float]  # sum over weights of their gradients' norms
    logits_sum_R: np.ndarray  # finite if all logits are
    load_RLE: np.ndarray
    kept_load_RLE: np.ndarray
    bias_RLE: np.ndarray


@dataclass(slots=True, eq=False)
class _Run:
    """What is one run's own."""

    index: int  # where it stands in stacked tensors
    knobs: Knobs
    optimizer: AdamW  # of views of the stacked weights
    bias: balance.BiasState
    ledger: metrics.Ledger
    good: _Good | None = None
    failed: bool = False
    truth: list[truth.Identity] | None = None

    @property
    def weights(self) -> list[nn.Parameter]:
        """Views of the stacked weights."""
        return self.optimizer.weights


def available_devices() -> list[str]:
    """Devices that a recipe may name on this machine, the best first."""
    devices = ["cuda"] if torch.cuda.is_available() else []
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return [*devices, "cpu"]


class Training:
    """A stack of runs and what they share: the data, the model's code and each step's one look at the numbers."""

    def __init__(self, recipe: Recipe, knobs_R: Sequence[Knobs], text: bytes | None) -> None:
        for knobs in knobs_R:
            check(recipe, knobs)
        self.recipe, self.step_number = recipe, 0
        self.device = pick_device(recipe.device)
        if self.device == "cpu":
            torch.set_num_threads(1)  # with any other busy process a second thread costs more than it gains
        self.text, self.task = text, make_task(recipe, self.device, text)
        with torch.random.fork_rng():
            torch.manual_seed(_stream_seed(recipe.seed, MODEL_STREAM))
            self.model = ToyMoE(recipe, self.task.output_size, len(knobs_R)).to(self.device)
        # Looked up once: walking the modules costs a fiftieth of a step.
        self._names, self._weights = zip(*self.model.named_parameters(), strict=True)
        self._data = torch.Generator().manual_seed(_stream_seed(recipe.seed, DATA_STREAM))
        self._protect = torch.Generator().manual_seed(_stream_seed(recipe.seed, PROTECTED_STREAM))
        self.runs = [self._new_run(index, knobs) for index, knobs in enumerate(knobs_R)]
        self.wants_truth = False  # set it to have the identities checked, about every EVAL_EVERY steps
        self._unchecked = True  # nothing has been checked yet under these knobs
        self._clock = _Clock()
        self._regroup()
        for run in self.runs:
            self._keep_good_state(run)

    def _new_run(self, index: int, knobs: Knobs) -> _Run:
        weights = [nn.Parameter(weight.detach()[index]) for weight in self._weights]
        shape = (self.recipe.num_layers, self.recipe.num_experts)
        bias = balance.start(*shape, knobs.bias_rule, self.device)
        return _Run(index, knobs, AdamW(weights), bias, metrics.Ledger(*shape))

    @property
    def bias_RLE(self) -> Tensor:
        """The selection bias of all layers of all runs."""
        return torch.stack([run.bias.bias_LE for run in self.runs])

    # --- one step ----------------------------------------------------------------------------------------------------

    def advance(self, knobs_R: Sequence[Knobs]) -> list[Snapshot | TrainingDiverged]:
        """One optimizer step and one bias step of every run whose loss and gradient are numbers: for each what its step
        showed, or why it did not count."""
        self._turn(knobs_R)
        batch, bias_RLE = self.task.batch(self._data), self.bias_RLE
        with truth.watching(self.model.layers if self._truth_is_due() else ()) as seen:
            hidden_RTd, decisions = self.model.hidden(
                batch.inputs, bias_RLE, self._groups, self._protected(), batch.token_id_T
            )
        losses = self._losses(batch, hidden_RTd, decisions)
        probe = self._backward(losses)
        look = self._look(losses, bias_RLE, decisions)
        results: dict[int, Snapshot | TrainingDiverged] = self._refusals(look, decisions)
        going = [run for run in self.runs if run.index not in results]
        compared = {run.index: probe.compare(run.index) for run in going if probe and self._probe_is_due(run)}
        self._descend(going)
        if going:
            self.step_number += 1
        for run in going:
            run.bias = balance.update(run.bias, self._routings(run, decisions), run.knobs, self.step_number)
        for run in going if seen else ():
            own = [layer for layer in seen if layer.run == run.index]
            run.truth = truth.check(own, run.bias.bias_LE, look.kept_load_RLE[run.index], run.knobs)
        if seen:
            self._unchecked = False
        held_out = self._examine() if going and self.step_number % EVAL_EVERY == 0 else None
        rate, apart = self._clock.tick(), self._apart(decisions)
        for run in going:
            shown, probed = held_out[run.index] if held_out else None, compared.get(run.index, NOT_PROBED)
            results[run.index] = self._snapshot(run, decisions, look, shown, probed, apart[run.index], rate)
            run.ledger.advance()
        return [results[run.index] for run in self.runs]

    def _turn(self, knobs_R: Sequence[Knobs]) -> None:
        """Take over changed knobs: all, or if one is refused none."""
        changed = [(run, knobs) for run, knobs in zip(self.runs, knobs_R, strict=True) if knobs != run.knobs]
        for _, knobs in changed:
            check(self.recipe, knobs)
        for run, knobs in changed:
            run.knobs = knobs
            if run.failed:
                self._go_back(run)
            run.bias = balance.under(run.bias, knobs.bias_rule)
        if changed:
            self._unchecked = True
            self._regroup()

    def _regroup(self) -> None:
        """Which runs route alike, and what each makes of its predictions further ahead."""
        knobs_R = [run.knobs for run in self.runs]
        self._groups = groups_of(knobs_R, self.device)
        self._mtp_weight_R = torch.tensor([knobs.mtp_weight for knobs in knobs_R], device=self.device)

    def _protected(self) -> Tensor | None:
        """Tokens of this batch's protected sequences; drawn at every step, so that dropping can be toggled freely."""
        draw_S = torch.rand(self.recipe.num_sequences, generator=self._protect)
        if all(run.knobs.token_dropping == "none" for run in self.runs):
            return None
        protected_RS = torch.stack([draw_S < run.knobs.protected_share for run in self.runs])
        return protected_RS.repeat_interleave(self.recipe.sequence_length, dim=-1).to(self.device)

    def _losses(
        self, batch: Batch, hidden_RTd: Tensor, decisions: list[list[Decision]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of the task, losses added for balance, loss on tokens further ahead: a value for each run."""
        task_loss_R = self.task.loss(self.model.predict(hidden_RTd), batch.targets)
        return task_loss_R, self._added_loss(decisions), self._further_loss(batch, hidden_RTd)

    def _added_loss(self, decisions: list[list[Decision]]) -> Tensor:
        added = [
            balance.added_loss([layer.routing for layer in layers], knobs, self.recipe.num_sequences)
            for (_, knobs), layers in zip(self._groups, decisions, strict=True)
        ]
        return added[0] if len(added) == 1 else torch.cat(added)[self._in_order()]

    def _in_order(self) -> list[int]:
        """Where each run stands when the members of all groups are written one after another."""
        members = [run for runs, _ in self._groups for run in runs]
        return sorted(range(len(members)), key=members.__getitem__)

    def _further_loss(self, batch: Batch, hidden_RTd: Tensor) -> Tensor:
        """L_MTP without lambda: the mean over depths of the mean over positions with a target (arXiv 2412.19437, eq.
        24-25); NaN where nothing looks ahead."""
        if not self.model.further_ahead:
            return torch.full((len(self.runs),), math.nan, device=self.device)
        target_SN = batch.targets.view(-1, self.recipe.sequence_length)
        predictions = enumerate(self.model.look_ahead(batch.inputs, hidden_RTd), start=1)
        by_depth = [self.task.loss(part, target_SN[:, depth:].flatten()) for depth, part in predictions]
        return torch.stack(by_depth).mean(0)

    def _backward(self, losses: tuple[Tensor, Tensor, Tensor]) -> Probe | None:
        task_loss_R, added_loss_R, further_loss_R = losses
        probe = Probe(self.model, added_loss_R.sum()) if any(map(self._probe_is_due, self.runs)) else None
        whole_R = task_loss_R + added_loss_R if added_loss_R.requires_grad else task_loss_R
        if self.model.further_ahead:
            whole_R = whole_R + self._mtp_weight_R * further_loss_R
        whole_R.backward(torch.ones_like(whole_R))
        for stacked, *own_R in zip(self._weights, *(run.weights for run in self.runs), strict=True):
            for own, grad in zip(own_R, () if stacked.grad is None else stacked.grad.unbind(), strict=False):
                own.grad = grad
        return probe

    def _look(self, losses: tuple[Tensor, Tensor, Tensor], bias_RLE: Tensor, decisions: list[list[Decision]]) -> _Look:
        """Bring everything that is told of a pass to the processor: until here an accelerator never waits."""
        norm_R = torch.stack([self._gradient_norm(run) for run in self.runs])
        scalars = torch.stack([*(loss_R.detach() for loss_R in losses), norm_R]).tolist()
        sums = [
            torch.stack([layer.routing.logits_TE.detach().sum((1, 2)) for layer in group], 1) for group in decisions
        ]
        loads = [torch.stack([layer.routing.load_E for layer in group], 1) for group in decisions]
        kept_loads = [torch.stack([layer.kept_load_RE for layer in group], 1) for group in decisions]
        return _Look(
            *scalars,
            logits_sum_R=self._to_processor(sums).sum(1),
            load_RLE=self._to_processor(loads),
            kept_load_RLE=self._to_processor(kept_loads),
            bias_RLE=bias_RLE.cpu().numpy().copy(),
        )

    def _gradient_norm(self, run: _Run) -> Tensor:
        gradients = [weight.grad for weight in run.weights if weight.grad is not None]
        return torch.stack(torch._foreach_norm(gradients)).sum() if gradients else torch.zeros((), device=self.device)

    def _to_processor(self, parts: list[Tensor]) -> np.ndarray:
        """A column of all groups as one array, the runs in their order."""
        return (parts[0] if len(parts) == 1 else torch.cat(parts)[self._in_order()]).cpu().numpy()

    def _refusals(self, look: _Look, decisions: list[list[Decision]]) -> dict[int, Snapshot | TrainingDiverged]:
        """The runs that cannot go on with this step, each with its reason."""
        refusals: dict[int, Snapshot | TrainingDiverged] = {}
        for run in self.runs:
            loss, norm = look.task_loss_R[run.index], look.gradient_norm_R[run.index]
            if math.isfinite(loss) and math.isfinite(norm) and math.isfinite(look.logits_sum_R[run.index]):
                continue
            reason = self._unroutable(run, decisions)
            if reason is None and not math.isfinite(loss):
                reason = f"the loss is {loss}"
            elif reason is None and not math.isfinite(norm):
                reason = "the gradient is not finite"
            if reason is not None:
                run.failed = True
                refusals[run.index] = TrainingDiverged(
                    f"Training diverged at step {self.step_number + 1}: {reason}. "
                    f"Try a learning_rate under {run.knobs.learning_rate:g}, then go on or reset."
                )
        return refusals

    def _unroutable(self, run: _Run, decisions: list[list[Decision]]) -> str | None:
        """Whether some layer's logits hold no numbers. Their sum may be infinite without that."""
        for routing in self._routings(run, decisions):
            if not routing.logits_TE.isfinite().all():
                return "the router's logits hold NaN or infinity"
        return None

    def _routings(self, run: _Run, decisions: list[list[Decision]]) -> list[Routing]:
        """One run's routing in each layer."""
        for (runs, _), layers in zip(self._groups, decisions, strict=True):
            if run.index in runs:
                return [layer.routing.twin(runs.index(run.index)) for layer in layers]
        raise AssertionError(f"run {run.index} is in no group")

    def _descend(self, going: list[_Run]) -> None:
        """One step of the optimizer for these runs; the weights of the others stay as they are."""
        warm_up = min(1.0, (self.step_number + 1) / WARM_UP_STEPS)
        for run in going:
            if run.failed or self.step_number % EVAL_EVERY == 0:
                self._keep_good_state(run)
            run.optimizer.step(run.knobs.learning_rate * warm_up)
        for weight in (*self._weights, *(own for run in self.runs for own in run.weights)):
            weight.grad = None

    def _keep_good_state(self, run: _Run) -> None:
        """Remember weights, moments and bias from which loss and gradient are numbers."""
        moments = [{name: value.clone() for name, value in own.items()} for own in run.optimizer.moments]
        run.good = _Good([weight.detach().clone() for weight in run.weights], moments, run.bias)
        run.failed = False

    @torch.no_grad()
    def _go_back(self, run: _Run) -> None:
        """To the last good state, at most `EVAL_EVERY` updates old. Neither the steps nor the data are counted back."""
        for weight, good in zip(run.weights, run.good.weights, strict=True):
            weight.copy_(good)
        run.optimizer.moments = [{name: value.clone() for name, value in own.items()} for own in run.good.moments]
        run.bias = run.good.bias

    def _truth_is_due(self) -> bool:
        """With every evaluation, and at once under new knobs."""
        return self.wants_truth and (self._unchecked or (self.step_number + 1) % EVAL_EVERY == 0)

    def _probe_is_due(self, run: _Run) -> bool:
        return run.knobs.probe_every > 0 and (self.step_number + 1) % run.knobs.probe_every == 0

    # --- what outlasts the process ------------------------------------------------------------------------------------

    def states(self) -> list[dict[str, Tensor]]:
        """Of each run, copies of all that its next step depends on, beside recipe, knobs and text. A state
        has no axis of runs."""
        return [self._state(run) for run in self.runs]

    def _state(self, run: _Run) -> dict[str, Tensor]:
        numbers = {}
        for name, weight, moments in zip(self._names, run.weights, run.optimizer.moments, strict=True):
            numbers[f"weight/{name}"] = weight.detach()
            numbers |= {f"{moment}/{name}": value for moment, value in moments.items()}
        numbers |= {"bias_LE": run.bias.bias_LE, "momentum_LE": run.bias.momentum_LE}
        numbers |= {"data": self._data.get_state(), "protect": self._protect.get_state()}
        numbers |= {"past_NLE": torch.from_numpy(run.ledger.past()), "step": torch.tensor(self.step_number)}
        return {name: value.cpu().clone() for name, value in numbers.items()}

    def restore_all(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Go on from `states` of the same recipe and text and of the same step, one for each run.

        Raises:
            KeyError, ValueError, RuntimeError: they are of another recipe, of different steps, or no states.
        """
        steps = {int(state["step"]) for state in states}
        if len(steps) > 1 or len(states) != len(self.runs):
            raise ValueError(f"{len(states)} states of steps {sorted(steps)} for {len(self.runs)} runs")
        [self.step_number] = steps
        for run, state in zip(self.runs, states, strict=True):
            self._restore(run, state)
        for generator, name in ((self._data, "data"), (self._protect, "protect")):
            generator.set_state(_like(generator.get_state(), states[0][name]))

    @torch.no_grad()
    def _restore(self, run: _Run, state: dict[str, Tensor]) -> None:
        for name, weight, moments in zip(self._names, run.weights, run.optimizer.moments, strict=True):
            weight.copy_(_like(weight, state[f"weight/{name}"]))
            for moment, own in moments.items():
                own.copy_(_like(own, state[f"{moment}/{name}"]) if self.step_number else torch.zeros_like(own))
        bias_LE, momentum_LE = (_like(run.bias.bias_LE, state[name]).clone() for name in ("bias_LE", "momentum_LE"))
        run.bias = balance.BiasState(run.knobs.bias_rule, bias_LE, momentum_LE)
        run.ledger.begin_after(_like(torch.from_numpy(run.ledger.past()), state["past_NLE"]).numpy())
        self._keep_good_state(run)

    # --- what is shown -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def observe_all(self) -> list[Snapshot]:
        """The untrained model on held-out tokens: step 0, nothing learned, nothing dropped."""
        batch, bias_RLE = self.task.held_out, self.bias_RLE
        hidden_RTd, decisions = self.model.hidden(batch.inputs, bias_RLE, self._groups, token_id_T=batch.token_id_T)
        look = self._look(self._losses(batch, hidden_RTd, decisions), bias_RLE, decisions)
        held_out, rate, apart = self._held_out(look.task_loss_R, decisions), self._clock.tick(), self._apart(decisions)
        return [
            self._snapshot(run, decisions, look, held_out[run.index], NOT_PROBED, apart[run.index], rate)
            for run in self.runs
        ]

    def _apart(self, decisions: list[list[Decision]]) -> list[Apart]:
        """How each run routed this batch beside the first one."""
        if len(self.runs) == 1:
            return [ALONE]
        taken = [self._taken(run, decisions) for run in self.runs]
        apart = [metrics.routed_differently(own, taken[0]) for own in taken[1:]]
        return [ALONE] + [Apart(*found) for found in apart]

    def _taken(self, run: _Run, decisions: list[list[Decision]]) -> np.ndarray:
        """Which experts each token went to, before drops: (L, T, E)."""
        layers = []
        for routing in self._routings(run, decisions):
            valid_TK = None if routing.valid_TK is None else routing.valid_TK.cpu().numpy()
            layers.append(metrics.taken(routing.chosen_TK.cpu().numpy(), self.recipe.num_experts, valid_TK))
        return np.stack(layers)

    @torch.no_grad()
    def _examine(self) -> list[HeldOut]:
        """Task loss on held-out tokens, and which experts their domains go to."""
        batch = self.task.held_out
        forward = self.model.hidden(batch.inputs, self.bias_RLE, self._groups, token_id_T=batch.token_id_T)
        loss_R = self.task.loss(self.model.predict(forward[0]), batch.targets)
        return self._held_out(loss_R.tolist(), forward[1])

    def _held_out(self, loss_R: list[float], decisions: list[list[Decision]]) -> list[HeldOut]:
        domain_T = self.task.held_out.domain_T.cpu().numpy()
        sizes = (self.recipe.num_experts, self.task.num_domains)
        shown = []
        for run in self.runs:
            counts = []
            for routing in self._routings(run, decisions):
                valid_TK = None if routing.valid_TK is None else routing.valid_TK.cpu().numpy()
                counts.append(metrics.joint_counts(routing.chosen_TK.cpu().numpy(), domain_T, *sizes, valid_TK))
            shown.append(HeldOut(loss_R[run.index], np.stack(counts)))
        return shown

    def _snapshot(
        self,
        run: _Run,
        decisions: list[list[Decision]],
        look: _Look,
        held_out: HeldOut | None,
        interference: Interference,
        apart: Apart,
        rate: float,
    ) -> Snapshot:
        recipe, knobs, index = self.recipe, run.knobs, run.index
        load_LE, kept_load_LE = look.load_RLE[index], look.kept_load_RLE[index]
        figures = run.ledger.figures(load_LE, kept_load_LE, knobs.num_devices)
        nothing = np.full(recipe.num_layers, math.nan)
        return Snapshot(
            step=self.step_number,
            task_loss=look.task_loss_R[index],
            added_loss=look.added_loss_R[index],
            mtp_loss=look.further_loss_R[index],
            eval_loss=held_out.loss if held_out else math.nan,
            load_LE=load_LE,
            kept_load_LE=kept_load_LE,
            bias_LE=look.bias_RLE[index],
            max_vio_L=figures.max_vio_L,
            max_vio_global_L=figures.max_vio_global_L,
            straggler_L=figures.straggler_L,
            specialisation_L=metrics.specialisation(held_out.joint_LEC) if held_out else nothing,
            fan_out_L=self._fan_out(run, decisions),
            dead_experts_L=figures.dead_experts_L,
            dropped_fraction_L=figures.dropped_fraction_L,
            interference=interference,
            fair=metrics.fair_router(recipe.tokens_per_step, knobs.top_k, recipe.num_experts),
            steps_per_second=rate,
            apart=apart,
        )

    def _fan_out(self, run: _Run, decisions: list[list[Decision]]) -> np.ndarray:
        groups = run.knobs.num_groups
        if groups == 1:
            return np.ones(self.recipe.num_layers)
        chosen = (routing.chosen_TK.cpu().numpy() for routing in self._routings(run, decisions))
        return np.array([metrics.fan_out(chosen_TK, self.recipe.num_experts, groups) for chosen_TK in chosen])


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


def pick_device(wanted: str) -> str:
    """The device that a recipe's `device` means on this machine.

    Raises:
        SettingsError: it is not there.
    """
    there = available_devices()
    if wanted == "auto":
        return there[0]
    if wanted not in there:
        raise SettingsError(f"device={wanted} is not on this machine. Choose auto or {' or '.join(there)}.")
    return wanted


def _like(pattern: Tensor, value: Tensor) -> Tensor:
    """A value on the device of what it replaces.

    Raises:
        ValueError: it has another shape or type.
    """
    if (value.shape, value.dtype) != (pattern.shape, pattern.dtype):
        raise ValueError(f"{tuple(value.shape)} {value.dtype} is not {tuple(pattern.shape)} {pattern.dtype}")
    return value.to(pattern.device)
