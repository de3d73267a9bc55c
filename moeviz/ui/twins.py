"""How does a visitor set up twins: add one, change what tells it apart, branch from the past?

A twin is the base, twin A, with other values of one setting, or of several once the lock is lifted. What is offered
are the values of the page's own controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from moeviz import sweep
from moeviz.config import KNOB_FIELDS, LOSS_WEIGHTS, Knobs, Recipe, SettingsError, balancing_fields, divisors, show
from moeviz.host import MOST_TWINS, Run, Twin, check_changes
from moeviz.ui import dots, fields, session, tree
from moeviz.ui.hosting import host

# The famous ones first; everything a twin may differ in.
FIRST = ("balancing", "gating", "u", "alpha", "groups_kept", "num_groups", "token_dropping", "capacity_factor", "top_k")
SETTINGS = (*FIRST, *(name for name in KNOB_FIELDS if name not in (*FIRST, "probe_every")))
NAMED = {
    "balancing": "Balancing",
    "u": "Bias update speed u",
    "alpha": "Loss α over the batch",
    "top_k": "Experts per token K",
    "num_groups": "Expert groups",
    "groups_kept": "Groups kept per token",
}


def title(name: str) -> str:
    """What a setting is called in a menu."""
    return NAMED.get(name, name.replace("_", " ").capitalize())


def shelf(run: Run) -> None:
    """Draw what tells each twin apart, and the way to another one."""
    if host().stacks_exactly(run.recipe.device) is False:
        st.caption(
            ":material/info: On this machine twins are the runs they are alone **to rounding**, not to the bit: its "
            "matrix products round a run otherwise when others are beside it."
        )
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        for twin in run.twins[1:]:
            _card(run, twin)
        if len(run.twins) < MOST_TWINS:
            # Another key once it has done its work: so it opens no more until it is asked to.
            key, told = f"twin_add_{run.twins[-1].id}", "The same seed and data, one setting changed."
            with st.popover("Add a twin", icon=":material/add:", help=told, key=key):
                _add(run)
        st.toggle(
            "One change each",
            session.visitor().locked,
            key="lock",
            on_change=session.surely(_lock),
            help="Locked, a twin differs from A in one setting, so that whatever parts them has one cause.",
        )
        if drawn := tree.drawn(run.twins, run.state().step):
            st.markdown(drawn, width="content")


def branch(run: Run) -> None:
    """Ask what is to change, where the visitor wants to branch from a past step."""
    me = session.visitor()
    if me.branching is None:
        return
    step, number = me.branching
    names = {twin.id: twin.name for twin in run.twins}
    with st.container(border=True):
        st.markdown(
            f":material/fork_right: **Branch at step {step:,} of {names.get(number, 'A')}**: the same weights, data "
            f"and past; from then on one thing is different."
        )
        with st.container(horizontal=True, vertical_alignment="bottom"):
            _choice(run, f"branch_{step}_{number}", {}, unchanged=True)
            session.button("Branch", key="branch_now", type="primary", on_click=_branch, args=(run, number, step))
            session.button("Cancel", key="branch_not", on_click=_forget_branch)


def beside(run: Run) -> None:
    """Say that others train beside the run that a page shows alone."""
    if len(run.twins) == 1:
        return
    names = ", ".join(twin.name for twin in run.twins[1:])
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f":material/stacks: This is twin A. Beside it train {names}, so each step takes longer.")
        st.page_link("pages/compare.py", label="Compare them", icon=":material/compare_arrows:")
        session.button("Go on with A alone", key="alone", type="tertiary", on_click=_alone, args=(run,))


def _card(run: Run, twin: Twin) -> None:
    said = "; ".join(twin.differences) or "like A"
    with st.popover(f"**{twin.name}** {said}", help="Change what tells it apart, or remove it.", key=f"twin_{twin.id}"):
        if twin.since:
            st.caption(f"Parted at step {twin.since:,}.")
        _choice(run, f"twin_{twin.id}", twin.changes)
        with st.container(horizontal=True):
            session.button("Change", key=f"twin_{twin.id}_change", type="primary", on_click=_change, args=(run, twin))
            session.button(
                "Remove", key=f"twin_{twin.id}_remove", icon=":material/close:", on_click=_remove, args=(run, twin.id)
            )


def _add(run: Run) -> None:
    _choice(run, "twin_new", {})
    session.button("Add twin", key="twin_new_add", type="primary", on_click=_join, args=(run,))


def _choice(run: Run, key: str, now: dict[str, Any], unchanged: bool = False) -> None:
    """A menu of settings and one of values: what a twin is to differ in."""
    nothing = ("",) if unchanged else ()
    options = (*nothing, *(name for name in SETTINGS if len(values(name, run.recipe, run.knobs)) > 1))
    usual = "balancing" if not run.knobs.losses and run.knobs.bias_rule == "none" else "u"
    shown = next(iter(now), usual if usual in options else options[0])
    name = st.selectbox(
        "What is different",
        options,
        options.index(shown) if shown in options else 0,
        key=f"{key}_setting",
        format_func=lambda name: title(name) if name else "nothing: the same again",
    )
    if not name:
        return
    offered, base = values(name, run.recipe, run.knobs), _of(run.knobs, name)
    taken = [twin.changes[name] for twin in run.twins if name in twin.changes]
    value = now.get(name, contrast(name, run.recipe, run.knobs, taken))
    labels = fields.LABELS.get(name, {})
    st.selectbox(
        "Its value",
        offered,
        offered.index(value) if value in offered else 0,
        key=f"{key}_{name}_value",
        format_func=lambda one: f"{labels.get(one, show(one))}{' (as A)' if one == base else ''}",
    )
    if why := needless(name, run.recipe, run.knobs):
        st.caption(f"It would change nothing: {why}")


def _chosen(run: Run, key: str) -> dict[str, Any]:
    """What the two menus say now: whoever chooses and clicks at once is quicker than the page is drawn."""
    name = session.value(f"{key}_setting")
    return {name: session.value_or(f"{key}_{name}_value", contrast(name, run.recipe, run.knobs))} if name else {}


def values(name: str, recipe: Recipe, knobs: Knobs) -> list[Any]:
    """What a setting may be beside the others as they are: the stops of its slider, the entries of its menu."""
    return [value for value in _listed(name, recipe, knobs) if _can_be_had(recipe, knobs, {name: value})]


def _can_be_had(recipe: Recipe, knobs: Knobs, changes: dict[str, Any]) -> bool:
    try:
        check_changes(recipe, knobs, changes)
    except SettingsError:
        return False
    return True


def _listed(name: str, recipe: Recipe, knobs: Knobs) -> list[Any]:
    if name == "balancing":
        return list(fields.LABELS["balancing"])
    spec = KNOB_FIELDS[name]
    offered = {
        "top_k": [count for count in (1, 2, 3, 4, 6, 8, 16) if count <= recipe.num_experts],
        "num_groups": divisors(recipe.num_experts),
        "groups_kept": list(fields.kept_options(recipe, knobs.num_groups, knobs.top_k)),
        "num_devices": divisors(recipe.num_experts),
        "freeze_after": [0, 50, 100, 200, 500, 1000],
        "probe_every": [spec.default],
    }
    choices = spec.metadata["choices"] or ((True, False) if isinstance(spec.default, bool) else ())
    found = [*offered.get(name, fields.STOPS.get(name, choices))]
    own = getattr(knobs, name)
    return found if own in found else [own, *found]


def contrast(name: str, recipe: Recipe, knobs: Knobs, taken: Sequence[Any] = ()) -> Any:
    """A value worth comparing with the one that the base has, and if possible with those that others have."""
    own, offered = _of(knobs, name), values(name, recipe, knobs)
    usual = [value for value in sweep.USUAL.get(name, offered) if value in offered and value != own]
    if name == "balancing":
        usual.sort(key=lambda value: value != ("none" if own == "loss_free" else "loss_free"))
    if isinstance(own, int | float) and not isinstance(own, bool):
        usual.sort(key=lambda value: value < own)
    return next((value for value in usual if value not in taken), (*usual, *offered)[0])


def needless(name: str, recipe: Recipe, knobs: Knobs) -> str:
    """Why this setting would change nothing as the others are; empty if it acts."""
    return sweep.needs(name, recipe, knobs)


def _of(knobs: Knobs, name: str) -> Any:
    return knobs.balancing if name == "balancing" else getattr(knobs, name)


def _lock() -> None:
    session.visitor().locked = session.value("lock")


def _trying(act: Any) -> bool:
    try:
        act()
    except SettingsError as refusal:
        session.say(str(refusal))
        return False
    return True


def _join(run: Run) -> None:
    _trying(lambda: run.add_twin(_chosen(run, "twin_new")))


def _change(run: Run, twin: Twin) -> None:
    changes = _chosen(run, f"twin_{twin.id}")
    wanted = merged(twin.changes, changes)
    if session.visitor().locked and len(wanted) > 1 and wanted.keys() != twin.changes.keys():
        before, new = (" and ".join(map(title, own)) for own in (twin.changes, changes))
        session.say(
            f"Twin {twin.name} differs in {before} already. With {new} as well, nobody could tell which of them parts "
            f"it from A. Add another twin for {new}, or unlock “One change each” first."
        )
        return
    _trying(lambda: run.change_twin(twin.id, wanted))


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Changes with another one: a balancing takes the place of the bias rule and of losses, and the other way round."""
    parts = {"bias_rule", *LOSS_WEIGHTS.values()}
    replaced = balancing_fields(new["balancing"]).keys() if "balancing" in new else set()
    replaced = set(replaced) | ({"balancing"} if new.keys() & parts else set())
    return {name: value for name, value in old.items() if name not in replaced} | new


def _remove(run: Run, number: int) -> None:
    dots.take_in(session.visitor().finds.dots, run, ends=True)
    _trying(lambda: run.remove_twin(number))


def _alone(run: Run) -> None:
    for twin in run.twins[1:]:
        _remove(run, twin.id)


def _branch(run: Run, parent: int, step: int) -> None:
    me, changes = session.visitor(), _chosen(run, f"branch_{step}_{parent}")
    inherited = next((twin.changes for twin in run.twins if twin.id == parent), {})
    if _trying(lambda: run.add_twin(merged(inherited, changes), parent, step)):
        me.branching = None


def _forget_branch() -> None:
    session.visitor().branching = None
