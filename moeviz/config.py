"""What may a person choose, and when does the choice take effect?

`Recipe`  what is built: changing it starts training again from step 0.
`Knobs`   how it is trained: read before every step, so changing one acts on the running training at its next step.

Both are frozen. A value out of range is refused when the object is made, an impossible combination by `check`; the
sentence of a refusal names the value, the rule and a remedy. "Off" is always a value ("none", one group, u = 0), so
no pair of switches can contradict each other.

This module imports neither torch nor streamlit: the web server, which must start fast and stay small, uses it too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from moeviz import strategies

TASKS = ("skills", "text")
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("float32", "bfloat16")
MAX_PARAMETERS = 20_000_000
MAX_TWINS = 8  # runs that are trained together

# The knob that holds the weight of each loss. Any of them may be on at the same time; 0 is off.
LOSS_WEIGHTS = {loss: "alpha" if loss == "batch" else f"alpha_{loss}" for loss in strategies.LOSSES}
# The balancing that people know by a name: a bias rule and losses at their usual strength, everything else off.
BALANCING: dict[str, dict[str, Any]] = {
    "none": {},
    "aux_loss": {"alpha": 0.1},
    "sequence_loss": {"alpha_sequence": 0.1},
    "loss_free": {"bias_rule": "sign"},
    "deepseek_v3": {"bias_rule": "sign", "alpha_sequence": 1e-4},
}


class SettingsError(ValueError):
    """A setting that cannot be used. The message is one sentence for people: the value, the rule, a remedy."""


def _setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


def _weight(of: str) -> Any:
    return _setting(0.0, f"weight {of}", low=0.0, high=100.0)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is built. Changing any of these starts training again from step 0.

    Raises:
        SettingsError: a value is outside the range or choices of its field.
    """

    task: str = _setting(
        "skills",
        "what the model learns: `skills` (synthetic, known answer) or `text` (bytes of real text)",
        choices=TASKS,
    )
    num_experts: int = _setting(16, "routed experts per layer, E", low=2, high=256)
    d_model: int = _setting(32, "width of a token's vector, d (a multiple of 4)", low=4, high=512)
    d_expert: int = _setting(32, "hidden size of one expert (a multiple of 4)", low=4, high=1024)
    num_layers: int = _setting(1, "mixture-of-experts layers, L", low=1, high=8)
    shared_experts: int = _setting(0, "experts that serve every token, beside the routed ones", low=0, high=4)
    mtp_depth: int = _setting(0, "tokens further ahead that the text task also predicts", low=0, high=2)
    tokens_per_step: int = _setting(1024, "tokens in a batch, T (a multiple of sequence_length)", low=32, high=8192)
    sequence_length: int = _setting(32, "tokens in a sequence", low=2, high=256)
    seed: int = _setting(0, "decides the weights, the data and every other draw", low=0, high=2**31 - 1)
    device: str = _setting("auto", "where it trains; `auto` takes a GPU if there is one", choices=DEVICES)
    precision: str = _setting(
        "float32",
        "numbers that the routed experts compute with (weights and router stay float32); bfloat16 is for GPUs",
        choices=PRECISIONS,
    )

    def __post_init__(self) -> None:
        _check_fields(self)
        unit = 4 if self.precision == "float32" else 8
        for name in ("d_model", "d_expert"):
            value = getattr(self, name)
            if value % unit:
                raise SettingsError(
                    f"{name}={value} is not a multiple of {unit}, which the grouped matrix product in "
                    f"{self.precision} needs. Try {_either(_neighbours(name, value, unit))}."
                )
        if self.tokens_per_step % self.sequence_length:
            raise SettingsError(
                f"tokens_per_step={self.tokens_per_step} cannot be cut into sequences of {self.sequence_length}. "
                f"Try {_either(_neighbours('tokens_per_step', self.tokens_per_step, self.sequence_length))}."
            )
        if self.num_parameters > MAX_PARAMETERS:
            raise SettingsError(
                f"This recipe has {self.num_parameters:,} expert parameters and a live toy may have "
                f"{MAX_PARAMETERS:,}. Lower num_experts, d_model, d_expert or num_layers."
            )

    @property
    def num_parameters(self) -> int:
        """Weights in all experts: each is a SwiGLU of three matrices, d_model x d_expert."""
        experts = self.num_experts + self.shared_experts
        return 3 * self.num_layers * experts * self.d_model * self.d_expert

    @property
    def num_sequences(self) -> int:
        """Sequences in a batch, S = T / sequence_length."""
        return self.tokens_per_step // self.sequence_length


# The text task needs attention over more than one layer before its routers have anything to disagree about.
TASK_DEFAULTS: dict[str, dict[str, Any]] = {"skills": {}, "text": {"d_model": 48, "num_layers": 2}}


@dataclass(frozen=True, slots=True)
class Knobs:
    """How it is trained. Read before every step: a change acts on the running training at its next step.

    Raises:
        SettingsError: a value is outside the range or choices of its field.
    """

    gating: str = _setting("sigmoid", "how a router's logits become affinities s", choices=tuple(strategies.AFFINITIES))
    router: str = _setting(
        "top_k",
        "who chooses: each token its experts (`top_k`), each expert its tokens (`expert_choice`, which sees the "
        "future) or a fixed table (`hash`); bias and groups act on `top_k` alone",
        choices=tuple(strategies.ROUTERS),
    )
    top_k: int = _setting(2, "experts chosen per token, K; with expert choice the mean", low=1, high=64)
    bias_rule: str = _setting(
        "none",
        "what nudges the selection bias b after each step; `none` removes the bias",
        choices=tuple(strategies.BIAS_RULES),
    )
    u: float = _setting(
        3e-3, "bias update speed: how far b moves per step; 0 freezes it where it is", low=0.0, high=1.0
    )
    damping: float = _setting(
        0.1, "share of the way to its target that the `quantile` rule moves b per step", low=0.0, high=1.0
    )
    freeze_after: int = _setting(
        0, "the bias moves in this many steps and then keeps its values; 0 never freezes it", low=0, high=1_000_000
    )
    alpha: float = _weight("of the balance loss over the whole batch; 0 is off")
    alpha_sequence: float = _weight("of the balance loss within each sequence")
    alpha_switch: float = _weight("of Switch's loss: first choices over the batch")
    alpha_gshard: float = _weight("of GShard's loss: first choices within each sequence")
    alpha_device: float = _weight("of DeepSeek-V2's loss on the work of devices")
    alpha_communication: float = _weight("of DeepSeek-V2's loss on the tokens that devices receive")
    alpha_z: float = _weight("of the z-loss, which keeps logits small")
    norm_topk: bool = _setting(True, "divide a token's gates by their sum over its K experts")
    route_scale: float = _setting(1.0, "factor on every gate, applied last", low=0.01, high=100.0)
    num_groups: int = _setting(1, "contiguous groups (nodes) of experts, G; 1 is no grouping", low=1, high=256)
    groups_kept: int = _setting(1, "groups a token may use, M", low=1, high=256)
    group_score: str = _setting(
        "top2",
        "a group's score: sum of its two best experts (`top2`, DeepSeek-V3) or its best (`max`, DeepSeek-V2)",
        choices=("top2", "max"),
    )
    token_dropping: str = _setting(
        "none",
        "drop the pairs that exceed the capacity of an `expert` or a `device`",
        choices=("none", "expert", "device"),
    )
    capacity_factor: float = _setting(1.25, "capacity as a multiple of the balanced load", low=0.1, high=16.0)
    num_devices: int = _setting(
        4, "devices that share the experts, D (for dropping and losses per device)", low=1, high=256
    )
    protected_share: float = _setting(0.1, "share of sequences whose tokens are never dropped", low=0.0, high=1.0)
    mtp_weight: float = _setting(
        0.3, "weight of the loss on tokens further ahead, lambda (text task with mtp_depth > 0)", low=0.0, high=10.0
    )
    probe_every: int = _setting(40, "steps between two probes of interference; 0 = never", low=0, high=10_000)
    learning_rate: float = _setting(3e-3, "AdamW's learning rate, after 20 steps of warm-up", low=0.0, high=1.0)

    def __post_init__(self) -> None:
        _check_fields(self)

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses that are on."""
        return tuple(loss for loss, weight in LOSS_WEIGHTS.items() if getattr(self, weight) > 0)

    @property
    def balancing(self) -> str:
        """The name people know this bias rule with these losses by, whatever their weights, or "custom"."""
        return next((name for name in BALANCING if self._balances_like(Knobs(**BALANCING[name]))), "custom")

    def _balances_like(self, other: Knobs) -> bool:
        return (self.bias_rule, self.losses) == (other.bias_rule, other.losses)


def check(recipe: Recipe, knobs: Knobs) -> None:
    """Refuse combinations that cannot be routed (SPEC 1.7).

    Raises:
        SettingsError: the first rule that is broken, as a sentence with a remedy.
    """
    experts, top_k, groups, kept = recipe.num_experts, knobs.top_k, knobs.num_groups, knobs.groups_kept
    if top_k > experts:
        raise SettingsError(
            f"top_k={top_k} asks for more experts than there are. Choose top_k <= {experts}, or more experts."
        )
    if experts % groups:
        raise SettingsError(
            f"{experts} experts cannot be split into {groups} equal groups. Try {_either(divisors(experts))} groups."
        )
    if kept > groups:
        raise SettingsError(
            f"groups_kept={kept} is more than the {groups} groups there are. Choose 1 to {groups}, or more groups."
        )
    if top_k > kept * (experts // groups):
        raise SettingsError(
            f"top_k={top_k} does not fit into {kept} kept groups of {experts // groups} experts. "
            f"Keep at least {smallest_groups_kept(experts, groups, top_k)} groups, or choose "
            f"top_k <= {kept * (experts // groups)}."
        )
    if uses_devices(knobs) and experts % knobs.num_devices:
        raise SettingsError(
            f"{experts} experts cannot be shared equally by {knobs.num_devices} devices. "
            f"Try {_either(divisors(experts))} devices."
        )


def uses_devices(knobs: Knobs) -> bool:
    """Whether these knobs need the experts to be shared equally by devices."""
    return knobs.token_dropping == "device" or bool({"device", "communication"} & set(knobs.losses))


HELD_OUT_SHARE = 0.1  # of a text: its last tenth is never trained on


def check_text(text: bytes, sequence_length: int) -> None:
    """Refuse a text from which no window can be cut for training, or none to hold out.

    Raises:
        SettingsError: it is too short.
    """
    needed = int((sequence_length + 1) / HELD_OUT_SHARE) + 1
    if len(text) < needed:
        raise SettingsError(
            f"The text has {len(text):,} bytes and sequences of {sequence_length} need at least {needed:,}. "
            f"Bring a longer text or choose a shorter sequence_length."
        )


def divisors(number: int) -> list[int]:
    """Every divisor of `number`, ascending."""
    return [k for k in range(1, number + 1) if number % k == 0]


def smallest_groups_kept(num_experts: int, num_groups: int, top_k: int) -> int:
    """The fewest groups that hold `top_k` experts, ceil(K / (E/G))."""
    return -(-top_k // (num_experts // num_groups))


def settle(recipe: Recipe, knobs: Knobs) -> tuple[Knobs, list[str]]:
    """The nearest possible knobs for a recipe, and one sentence for each thing that had to give.

    Used where a person should see a way out instead of a dead end: a shared link, or a slider that made another
    slider's value impossible.
    """
    notices: list[str] = []
    for repair in (_fewer_choices, _fewer_groups, _fewer_kept, _more_kept, _fewer_devices):
        try:
            check(recipe, knobs)
            break
        except SettingsError as refusal:
            settled = repair(recipe, knobs)
            if settled != knobs:
                notices.append(f"{refusal} Used here: {'; '.join(describe_change(knobs, settled))}.")
            knobs = settled
    return knobs, notices


def _fewer_choices(recipe: Recipe, knobs: Knobs) -> Knobs:
    return replace(knobs, top_k=min(knobs.top_k, recipe.num_experts))


def _fewer_groups(recipe: Recipe, knobs: Knobs) -> Knobs:
    return replace(knobs, num_groups=max(d for d in divisors(recipe.num_experts) if d <= knobs.num_groups))


def _fewer_kept(recipe: Recipe, knobs: Knobs) -> Knobs:
    return replace(knobs, groups_kept=min(knobs.groups_kept, knobs.num_groups))


def _more_kept(recipe: Recipe, knobs: Knobs) -> Knobs:
    needed = smallest_groups_kept(recipe.num_experts, knobs.num_groups, knobs.top_k)
    return replace(knobs, groups_kept=max(knobs.groups_kept, needed))


def _fewer_devices(recipe: Recipe, knobs: Knobs) -> Knobs:
    return replace(knobs, num_devices=max(d for d in divisors(recipe.num_experts) if d <= knobs.num_devices))


def parse_settings(values: dict[str, str], recipe: Recipe, knobs: Knobs) -> tuple[Recipe, Knobs]:
    """`recipe` and `knobs` with the settings that the command line or a shared link gives as text.

    `balancing=NAME` is short for a bias rule and the weights of all losses (`BALANCING`); single settings change it.
    Each object is checked; the combination is not (`check` or `settle` does that).

    Raises:
        SettingsError: an unknown name, or a value its field refuses.
    """
    recipe_changes: dict[str, Any] = {}
    knob_changes: dict[str, Any] = balancing_fields(values["balancing"]) if "balancing" in values else {}
    for name, text in values.items():
        if name == "balancing":
            continue
        if name in RECIPE_FIELDS:
            recipe_changes[name] = parse_value(name, text)
        elif name in KNOB_FIELDS:
            knob_changes[name] = parse_value(name, text)
        else:
            raise SettingsError(f"There is no setting called {name!r}. {_did_you_mean(name)}")
    return replace(recipe, **recipe_changes), replace(knobs, **knob_changes)


def check_names(names: Iterable[str], known: Mapping[str, Any]) -> None:
    """Refuse what is no setting of this kind.

    Raises:
        SettingsError: the first name that is not `known`, with those that are like it.
    """
    for name in names:
        if name not in known:
            raise SettingsError(f"There is no setting called {name[:40]!r}. {_did_you_mean(name[:40])}")


def balancing_fields(name: str) -> dict[str, Any]:
    """The bias rule and the weight of every loss of a named balancing.

    Raises:
        SettingsError: the name is unknown.
    """
    if name not in BALANCING:
        raise SettingsError(f"balancing={name} is not a known strategy. Choose {_either(list(BALANCING))}.")
    return {"bias_rule": "none"} | dict.fromkeys(LOSS_WEIGHTS.values(), 0.0) | BALANCING[name]


def parse_value(name: str, text: str) -> Any:
    """One setting's text as the type of its field.

    Raises:
        SettingsError: the text is not such a value.
    """
    default = (RECIPE_FIELDS.get(name) or KNOB_FIELDS[name]).default
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
        return type(default)(text.strip())
    except (ValueError, KeyError, OverflowError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[type(default)]
        raise SettingsError(f"{name}={text} is not {kind}. The default is {show(default)}.") from None


def describe_change(old: Knobs, new: Knobs) -> list[str]:
    """What changed, in words short enough for a mark on a chart: ["u 0.003 → 0.1"]."""
    before, after = asdict(old), asdict(new)
    changes = []
    if old.balancing != new.balancing and "custom" not in (old.balancing, new.balancing):
        changes.append(f"balancing {old.balancing} → {new.balancing}")
        before |= balancing_fields(new.balancing)
    changes += [f"{name} {show(before[name])} → {show(after[name])}" for name in before if before[name] != after[name]]
    return changes


def show(value: Any) -> str:
    """A setting's value as people write it: 0.003, not 0.0030000000000000001 or 3e-03."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def setting_names() -> list[str]:
    """Every name that `--set` and a shared link may use."""
    return [*RECIPE_FIELDS, "balancing", *KNOB_FIELDS]


def _check_fields(settings: Recipe | Knobs) -> None:
    for spec in fields(settings):
        _check_field(spec.name, getattr(settings, spec.name), spec.default, spec.metadata)


def _check_field(name: str, value: Any, default: Any, rules: Any) -> None:
    if type(value) is not type(default) and not (isinstance(default, float) and type(value) is int):
        raise SettingsError(f"{name}={value!r} is not {type(default).__name__}. The default is {show(default)}.")
    if rules["choices"] and value not in rules["choices"]:
        raise SettingsError(f"{name}={value} is not a choice. Choose {_either(list(rules['choices']))}.")
    if rules["low"] is None:
        return
    if not rules["low"] <= value <= rules["high"]:  # NaN is never within
        raise SettingsError(
            f"{name}={show(value)} is outside {show(rules['low'])} to {show(rules['high'])}. "
            f"The default is {show(default)}."
        )


def _neighbours(name: str, value: int, unit: int) -> list[int]:
    """The multiples of `unit` next to a value that is none, as far as the recipe's field takes them."""
    below = value - value % unit
    rules = RECIPE_FIELDS[name].metadata
    return [near for near in (below, below + unit) if rules["low"] <= near <= rules["high"]]


def _did_you_mean(name: str) -> str:
    close = difflib.get_close_matches(name, setting_names(), n=3)
    return f"Did you mean {_either(close)}?" if close else "`python -m moeviz settings` lists them all."


def _either(options: list[Any]) -> str:
    *first, last = map(str, options)
    return f"{', '.join(first)} or {last}" if first else last


RECIPE_FIELDS = {spec.name: spec for spec in fields(Recipe)}
KNOB_FIELDS = {spec.name: spec for spec in fields(Knobs)}
