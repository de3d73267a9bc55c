"""What can a visitor turn, in the order a newcomer needs it?

Every control's key is the name of its setting, which is also its name in the address; defaults come from the settings'
own dataclasses. The famous controls are in the open, everything else behind "More".
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from moeviz import presets, strategies
from moeviz.config import (
    BALANCING,
    KNOB_FIELDS,
    LOSS_WEIGHTS,
    PRECISIONS,
    RECIPE_FIELDS,
    TASKS,
    Knobs,
    Recipe,
    divisors,
    show,
)
from moeviz.ui import fields, session
from moeviz.ui.hosting import host

CUSTOM = "custom"
MAX_UPLOAD_MB = 5


def sidebar(page: str, whose: str = "") -> session.Visitor:
    """Draw all controls on a page; `whose` says whose they are. Returns the visitor with the settings they now have."""
    me = session.take_controls(page)
    with st.sidebar:
        if whose:
            st.caption(whose)
        _preset(me.knobs)
        _gating()
        # Sliders come and go in two of these. Containers keep them from shifting what follows.
        with st.container():
            _balancing(me.knobs)
        _groups(me.recipe, me.knobs)
        with st.container():
            _dropping(me.recipe, me.knobs)
        with st.expander("More", key="more"):  # with a key it stays open even where the browser makes it anew
            _more(me.recipe, me.knobs)
            _recipe(me.recipe)
        st.caption("The address above holds these settings: copy it to share them.")
    return me


def _help(name: str) -> str:
    return (KNOB_FIELDS.get(name) or RECIPE_FIELDS[name]).metadata["help"].capitalize() + "."


def _preset(knobs: Knobs) -> None:
    matching = presets.matching_preset(knobs) or CUSTOM
    options = [*presets.PRESETS, *([CUSTOM] if matching == CUSTOM else [])]
    session.show_in_menu("preset_choice", matching)
    st.selectbox(
        "Preset",
        options,
        key="preset_choice",
        format_func=lambda name: "Custom" if name == CUSTOM else presets.PRESETS[name].title,
        on_change=session.surely(_choose_preset),
        help="Sets all controls below at once. Training goes on: press Reset to begin again.",
    )


def _choose_preset() -> None:
    if (name := session.chosen("preset_choice")) in presets.PRESETS:
        session.choose_preset(name)


def _gating() -> None:
    choices = KNOB_FIELDS["gating"].metadata["choices"]
    st.selectbox(
        "Gating",
        choices,
        choices.index(Knobs().gating),
        key="gating",
        format_func=fields.LABELS["gating"].get,
        bind="query-params",
        help="Softmax: experts share one sum (DeepSeek-V2). Sigmoid: each is scored on its own (DeepSeek-V3). "
        "√softplus: the same without an upper end (DeepSeek-V4).",
    )


def _balancing(knobs: Knobs) -> None:
    options = [*BALANCING, *([CUSTOM] if knobs.balancing == CUSTOM else [])]
    session.show_in_menu("balancing_choice", knobs.balancing)
    st.selectbox(
        "Balancing",
        options,
        key="balancing_choice",
        format_func=lambda name: "Custom" if name == CUSTOM else fields.LABELS["balancing"][name],
        on_change=session.surely(_choose_balancing),
        help="None: routing is left alone. Auxiliary loss: a penalty on imbalance joins the task loss. Loss-free bias: "
        "a bias on the choice, nudged after each step, never in the gate. More rules and losses are under More.",
    )
    _slider("u", "Bias update speed u", disabled=not acts("u", knobs))
    if acts("u", knobs):
        st.caption(f"Reach u × steps: {show(100 * knobs.u)} in 100 steps")
    else:
        st.caption("Needs a bias that moves by u.")
    if loss := _loss_in_the_open(knobs):
        _alpha(loss)
    elif knobs.losses:
        st.caption(f"{len(knobs.losses)} losses are on: their strengths are under More.")


def _loss_in_the_open(knobs: Knobs) -> str | None:
    # One slider has room beside the famous controls; several would push them off a projector's screen.
    return knobs.losses[0] if len(knobs.losses) == 1 else None


def _choose_balancing() -> None:
    if (name := session.chosen("balancing_choice")) in BALANCING:
        session.choose_balancing(name)


def _alpha(loss: str) -> None:
    _slider(LOSS_WEIGHTS[loss], f"Loss α {strategies.LOSSES[loss].title}")


def acts(name: str, knobs: Knobs) -> bool:
    """Whether a knob does anything beside the others as they are; what does nothing is not offered."""
    steered = knobs.router == "top_k"
    biased = steered and knobs.bias_rule != "none"
    grouped = steered and knobs.num_groups > 1
    return {
        "bias_rule": steered,
        "u": biased and knobs.bias_rule != "quantile",
        "damping": biased and knobs.bias_rule == "quantile",
        "freeze_after": biased,
        "num_groups": steered,
        "groups_kept": grouped,
        "group_score": grouped and knobs.groups_kept < knobs.num_groups,
        "protected_share": knobs.token_dropping != "none",
    }.get(name, True)


def _slider(name: str, label: str, disabled: bool = False) -> None:
    st.select_slider(
        label,
        fields.STOPS[name],
        value=KNOB_FIELDS[name].default,
        key=name,
        format_func=show,
        disabled=disabled,
        bind="query-params",
        help=_help(name),
    )


def _groups(recipe: Recipe, knobs: Knobs) -> None:
    groups, kept = st.columns(2)
    groups.selectbox(
        "Expert groups",
        divisors(recipe.num_experts),
        key="num_groups",
        format_func=lambda count: fields.LABELS["num_groups"].get(count, str(count)),
        on_change=session.surely(_keep_half_the_groups),
        disabled=not acts("num_groups", knobs),
        bind="query-params",
        help="Group-limited routing: each token may use only its best groups (nodes) of experts.",
    )
    kept.selectbox(
        "Kept per token",
        fields.kept_options(recipe, knobs.num_groups, knobs.top_k),
        key="groups_kept",
        disabled=not acts("groups_kept", knobs),
        bind="query-params",
        help=_help("groups_kept"),
    )


def _keep_half_the_groups() -> None:
    groups = session.value("num_groups")
    options = fields.kept_options(session.visitor().recipe, groups, session.visitor().knobs.top_k)
    session.choose(groups_kept=max(options[0], groups // 2))


def _dropping(recipe: Recipe, knobs: Knobs) -> None:
    st.segmented_control(
        "Token dropping",
        KNOB_FIELDS["token_dropping"].metadata["choices"],
        key="token_dropping",
        default=Knobs().token_dropping,
        required=True,
        format_func=fields.LABELS["token_dropping"].get,
        width="stretch",
        bind="query-params",
        help="Tokens that exceed the capacity of an expert, or of a device's experts, skip it: lowest affinity first.",
    )
    if knobs.token_dropping != "none":
        _slider("capacity_factor", "Capacity factor")


def _more(recipe: Recipe, knobs: Knobs) -> None:
    _menu("router", "Router", strategies.ROUTERS, knobs)
    st.number_input("Experts per token K", 1, min(64, recipe.num_experts), 2, key="top_k", bind="query-params")
    _slider("learning_rate", "Learning rate")
    st.toggle("Normalise gates over the K", key="norm_topk", value=True, bind="query-params", help=_help("norm_topk"))
    _slider("route_scale", "Gate scale")
    st.segmented_control(
        "Group score",
        KNOB_FIELDS["group_score"].metadata["choices"],
        key="group_score",
        default=Knobs().group_score,
        required=True,
        disabled=not acts("group_score", knobs),
        bind="query-params",
        help=_help("group_score"),
    )
    devices = sorted({*divisors(recipe.num_experts), knobs.num_devices})
    st.selectbox(
        "Devices",
        devices,
        # What the address may leave out: the number that nobody chose.
        max(index for index, count in enumerate(devices) if count <= Knobs().num_devices),
        key="num_devices",
        bind="query-params",
        help=_help("num_devices"),
    )
    _slider("protected_share", "Protected sequences", disabled=not acts("protected_share", knobs))
    _rules_and_losses(knobs)
    _slider("mtp_weight", "Weight of tokens further ahead λ", disabled=recipe.task != "text" or not recipe.mtp_depth)
    _count("probe_every", "Probe interference every", knobs)


def _rules_and_losses(knobs: Knobs) -> None:
    _menu("bias_rule", "Bias rule", strategies.BIAS_RULES, knobs)
    _slider("damping", "Damping of the quantile rule", disabled=not acts("damping", knobs))
    _count("freeze_after", "Freeze the bias after step", knobs)
    for loss in strategies.LOSSES:
        if loss != _loss_in_the_open(knobs):
            _alpha(loss)


def _menu(name: str, label: str, texts: dict[str, strategies.Strategy], knobs: Knobs) -> None:
    st.selectbox(
        label,
        list(texts),
        key=name,
        format_func=fields.LABELS[name].get,
        disabled=not acts(name, knobs),
        bind="query-params",
        help="  \n".join(f"{text.title}: {text.meaning}" for text in texts.values()),
    )


def _count(name: str, label: str, knobs: Knobs) -> None:
    low, high = KNOB_FIELDS[name].metadata["low"], KNOB_FIELDS[name].metadata["high"]
    st.number_input(
        label,
        low,
        high,
        KNOB_FIELDS[name].default,
        10,
        key=name,
        disabled=not acts(name, knobs),
        bind="query-params",
        help=_help(name),
    )


NUMBERS = {
    "num_experts": ("Experts E", 1),
    "num_layers": ("Layers L", 1),
    "d_model": ("Width d", 4),
    "d_expert": ("Expert width", 4),
    "tokens_per_step": ("Tokens T", 128),
    "sequence_length": ("Sequence", 8),
    "shared_experts": ("Shared", 1),
    "mtp_depth": ("MTP depth", 1),
    "seed": ("Seed", 1),
}


def _recipe(recipe: Recipe) -> None:
    with st.form("recipe", border=False):
        st.markdown("**What is built.** Changes here take effect with the button, which restarts from step 0.")
        st.selectbox(
            "Task", TASKS, key="task", format_func=fields.LABELS["task"].get, bind="query-params", help=_help("task")
        )
        columns = st.columns(2)
        for place, name in enumerate(NUMBERS):
            _number(columns[place % 2], name)
        devices = list(dict.fromkeys(["auto", *host().devices, recipe.device]))
        columns[1].selectbox("Device", devices, key="device", bind="query-params", help=_help("device"))
        st.selectbox("Precision", PRECISIONS, key="precision", bind="query-params", help=_help("precision"))
        _own_text()
        session.button(
            "Restart with these",
            key="restart_with",
            on_click=session.restart_with,
            args=("own_text", "keep_text"),
            make=st.form_submit_button,
            width="stretch",
        )


def _own_text() -> None:
    """Ask for a text to learn. After a reload the browser has forgotten the file, and the run has not."""
    upload = st.file_uploader(
        "Your own text, for the text task",
        key="own_text",
        max_upload_size=MAX_UPLOAD_MB,
        help="Any file: its bytes are learned as they are. It is forgotten with the run.",
    )
    if upload is None and (text := session.visitor().text) is not None:
        st.toggle(f"Keep your text of {len(text):,} bytes", value=True, key="keep_text")


def _number(place: Any, name: str) -> None:
    label, step = NUMBERS[name]
    spec = RECIPE_FIELDS[name]
    low, high = spec.metadata["low"], spec.metadata["high"]
    place.number_input(label, low, high, spec.default, step, key=name, bind="query-params", help=_help(name))
