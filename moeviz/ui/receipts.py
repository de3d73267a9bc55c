"""How does a visitor get a receipt of their run, and see whether somebody else's is true?

A receipt that is brought is foreign text: it is read with care, and what a sentence repeats of it is shown as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

import streamlit as st

from moeviz import config, receipt
from moeviz.config import SettingsError
from moeviz.host import Check, Run, Verdict, in_advance
from moeviz.live import replay
from moeviz.receipt import Receipt
from moeviz.ui import session
from moeviz.ui.fields import plain
from moeviz.ui.hosting import host

KEY = "receipt"
EVERY = 0.5  # seconds between two looks at a check
MOST_REASONS = 8
LABEL_WIDTH = 110  # pixels
# What a box copies is all of it, also where only its beginning fits.
STYLE = (
    "<style>[class*='st-key-receipt_copy'] code { display: block; overflow: hidden; text-overflow: ellipsis; }"
    "[class*='st-key-receipt_copy'] pre { overflow: hidden; padding-top: 0.6rem; padding-bottom: 0.6rem; }</style>"
)


def menu(run: Run) -> None:
    """A button that opens the receipt of the run, and the check of another one."""
    popover = st.popover(
        ":material/receipt_long:", key=KEY, help="Receipt: prove this run, or check another.", on_change="rerun"
    )
    if popover.open:
        with popover:
            mine, theirs = st.tabs(["This run", "Check a receipt"])
            with mine:
                _own(run)
            with theirs:
                _bring(run)


def panel() -> None:
    """Show how far a check is, or what came of it, until the visitor has read it."""
    check = session.visitor().check
    if check is None:
        return
    if check.look() is None:
        _under_way()
        return
    with st.container(border=True):
        _tell(check, check.look())
        session.button("Got it", key="check_read", on_click=_forget)


# --- the visitor's own ---------------------------------------------------------------------------------------------


def _own(run: Run) -> None:
    twins = {twin.id: twin.name for twin in run.twins}
    twin = 0
    if len(twins) > 1:
        twin = st.segmented_control("Of twin", list(twins), default=0, required=True, format_func=twins.get)
    try:
        issued = run.receipt(twin)
    except (SettingsError, KeyError) as refusal:
        st.info(str(refusal) if isinstance(refusal, SettingsError) else "This twin is gone.", icon=":material/info:")
        return
    again = f"Who trains these **{issued.steps:,} steps** again on the same kind of machine and versions gets the same"
    if len(twins) > 1 and host().stacks_exactly(run.recipe.device) is False:
        st.caption(
            f"{again} numbers **to rounding**: on this machine a run beside others is rounded otherwise than alone, so "
            f"the hashes may differ. Open this again for newer steps."
        )
    else:
        st.caption(f"{again} hashes, to the bit. Open this again for newer steps.")
    st.html(STYLE)
    _copied("Settings", address(issued), "link")
    if issued.schedule:
        st.caption(f"{_changes(issued)} The link has the settings before that; the file has all.")
    _copied("First snapshot", issued.first, "first")
    _copied("Last snapshot", issued.last, "last")
    _facts(issued)
    _take(run, issued)


def _facts(told: Receipt) -> None:
    """Seed and what trained it, as words that are nothing but words."""
    versions = ", ".join(f"{name} {version}" for name, version in told.versions.items())
    machine = ", ".join(told.machine.values())
    st.text(f"Seed {told.seed}, {told.steps:,} steps; {versions}; on {told.device} ({machine})")


def _take(run: Run, issued: Receipt) -> None:
    text = receipt.to_json(issued)
    recipe, plan = issued.plan()
    st.download_button(
        "Download receipt (JSON)",
        text,
        replay.file_name(recipe, plan[-1][1], issued.steps, "receipt.json"),
        "application/json",
        key="receipt_download",
        icon=":material/download:",
        on_click="ignore",
        width="stretch",
    )
    with st.expander("As text, to copy"):
        st.code(text, language="json", height=200)


def _copied(label: str, text: str, key: str) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
        st.caption(label, width=LABEL_WIDTH)
        with st.container(key=f"receipt_copy_{key}"):
            st.code(text, language=None)


def address(issued: Receipt) -> str:
    """The whole address that opens the Playground with the settings of the first step."""
    here = urlsplit(st.context.url or "")
    path = here.path.removesuffix("/compare").rstrip("/") + "/"
    return urlunsplit((here.scheme, here.netloc, path, "", "")) + issued.link


def _changes(issued: Receipt) -> str:
    """When settings changed on the way, in a sentence."""
    steps = [f"{step:,}" for step, _ in issued.schedule]
    shown = ", ".join(steps[:5]) + (f" and {len(steps) - 5} more" if len(steps) > 5 else "")
    return (
        f"Settings were changed on the way, from step {shown} on." if len(steps) == 1 else f"Changed at steps {shown}."
    )


# --- somebody's ----------------------------------------------------------------------------------------------------


def _bring(run: Run) -> None:
    pasted = st.text_area(
        "Receipt", key="receipt_text", height=90, placeholder='{"moeviz_receipt": 1, …}',
        help="Its run is trained again here, and the hashes are compared.",
    )  # fmt: skip
    file = st.file_uploader("Or its file", key="receipt_file", type="json", max_upload_size=1)
    if not pasted.strip() and file is None:
        return
    try:
        theirs = receipt.from_json(pasted if pasted.strip() else file.getvalue())
    except SettingsError as refusal:
        st.error("**This cannot be checked.**", icon=":material/error:")
        st.text(str(refusal))
        return
    _say_what_it_is(run, theirs)
    text = _text_for(theirs)
    session.button(
        "Train it again here",
        key="check_begin",
        type="primary",
        on_click=_begin,
        args=(theirs, text),
        disabled=theirs.text is not None and text is None,
        width="stretch",
    )


def _say_what_it_is(run: Run, theirs: Receipt) -> None:
    """What would be trained, and what is not the same here; the same hash is not to be expected then."""
    recipe, plan = theirs.plan()
    _facts(theirs)
    if theirs.schedule:
        st.caption(_changes(theirs))
    others = config.describe_change(run.knobs, plan[0][1]) + _other_recipe(run.recipe, recipe)
    if others:
        st.caption("Its settings beside those of your run: " + plain("; ".join(others[:MOST_REASONS])))
    if reasons := in_advance(host(), theirs):
        st.markdown(":material/compare_arrows: **The hashes may differ for a good reason:**")
        _list(reasons)


def _list(reasons: Sequence[str]) -> None:
    """Sentences with foreign words in them: no Markdown, which would make links of them."""
    st.text("\n".join(f"• {reason}" for reason in reasons[:MOST_REASONS]))


def _other_recipe(mine: config.Recipe, theirs: config.Recipe) -> list[str]:
    names = (name for name in config.RECIPE_FIELDS if getattr(mine, name) != getattr(theirs, name))
    return [f"{name} {config.show(getattr(mine, name))} → {config.show(getattr(theirs, name))}" for name in names]


def _text_for(theirs: Receipt) -> bytes | None:
    """The text that the receipt's run learned: the visitor's own if it is that, else the one they bring."""
    if theirs.text is None:
        return None
    own = session.visitor().text
    if own is not None and hashlib.sha256(own).hexdigest() == theirs.text:
        return own
    brought = st.file_uploader("It learned somebody's own text: bring that file", key="receipt_own_text")
    if brought is None:
        return None
    if hashlib.sha256(brought.getvalue()).hexdigest() == theirs.text:
        return brought.getvalue()
    st.error("This is not the text that the run learned: their hashes differ. Bring that one.", icon=":material/error:")
    return None


def _begin(theirs: Receipt, text: bytes | None) -> None:
    _forget()
    me = session.visitor()
    try:
        me.check = Check(host(), theirs, text)
    except SettingsError as refusal:
        session.say(plain(str(refusal)))
    st.session_state[KEY] = False  # what comes of it is shown below


# --- the check -----------------------------------------------------------------------------------------------------


@st.fragment(run_every=EVERY)
def _under_way() -> None:
    check = session.visitor().check
    if check is None or check.look() is not None:
        st.rerun()
    with st.container(border=True), st.container(horizontal=True, vertical_alignment="center"):
        steps = check.theirs.steps
        said = plain(check.message) or f"Checking a receipt: step {check.step:,} of {steps:,}"
        st.progress(min(check.step / max(steps, 1), 1.0), text=said)
        session.button("Cancel", key="check_cancel", on_click=_forget)


def _tell(check: Check, verdict: Verdict) -> None:
    steps = check.theirs.steps
    if verdict.same:
        st.success(
            f"**Same first and last snapshot**, to the bit: these {steps:,} steps come out here as the receipt says.",
            icon=":material/verified:",
        )
    else:
        st.error(
            f"**Not the same.** First snapshot (step 0): {_word(verdict.first)}. "
            f"Last snapshot (step {steps:,}): {_word(verdict.last)}.",
            icon=":material/difference:",
        )
    if verdict.reasons:
        st.caption("Although this is not the same:" if verdict.same else "What may be the reason:")
        _list(verdict.reasons)


def _word(same: bool) -> str:
    return "the same" if same else "another"


def _forget() -> None:
    if (check := session.visitor().check) is not None:
        check.cancel()
    session.visitor().check = None
