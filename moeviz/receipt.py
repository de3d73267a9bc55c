"""Was this run the run that it is said to be? What must be known to train it again, and how to tell that it came out.

A receipt has the settings, as an address has them, what was changed on the way, and the hashes of the first and the
last row of its history. On the same kind of machine with the same versions, the same receipt gives the same hashes;
elsewhere `differences` says what is not the same. It proves no more than that: whoever writes one can write anything,
and training it again is what checks it.

Not every run has one: after a divergence a run goes on from its last good state, which a receipt cannot tell.
No torch here: the web server issues receipts too.
"""

from __future__ import annotations

import hashlib
import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np

from moeviz.config import KNOB_FIELDS, TASK_DEFAULTS, Knobs, Recipe, SettingsError, check, parse_settings, show
from moeviz.snapshot import CIRCUMSTANCES

FORMAT = 1
MAX_CHARACTERS = 1 << 18  # of a receipt as text: room for a thousand changes
MAX_STEPS = 100_000_000  # as many as a history tells of
LONGEST = 100  # characters of a name or a value
QUOTED = 40  # characters of a foreign text that a sentence repeats
BRING = "Bring a receipt as it was written."
UNEXPLAINED = (
    "All that a receipt tells is the same here. So the receipt was changed after it was written, or this machine "
    "computes otherwise than one of the same kind."
)
HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Receipt:
    """A run in a few lines. Values of settings are texts, as in an address; what is left out has its default.

    Raises:
        SettingsError: it describes no run that could be trained.
    """

    settings: dict[str, str]  # of the first step; `seed` among them
    schedule: tuple[tuple[int, dict[str, str]], ...]  # the first step made under changed knobs, and what changed
    steps: int  # the last row's
    versions: dict[str, str]  # of moeviz, torch, numpy and python
    device: str  # that trained it: "cpu", "cuda" or "mps"
    machine: dict[str, str]  # its kind, as `moeviz.machine.kind` gives it
    first: str  # hash of the row of step 0
    last: str  # hash of the row of the last step
    text: str | None = None  # hash of the person's own text, if it learned one

    def __post_init__(self) -> None:
        self.plan()

    @property
    def seed(self) -> int:
        """What every draw of the run came from."""
        return self.plan()[0].seed

    @property
    def link(self) -> str:
        """What follows the page's address to get the settings of the first step."""
        return "?" + urllib.parse.urlencode(self.settings)

    def plan(self) -> tuple[Recipe, list[tuple[int, Knobs]]]:
        """What to build, and the first step under each knobs; the first of all are those of step 0.

        Raises:
            SettingsError: the settings cannot be, or the steps of the changes do not ascend from 1 to the last.
        """
        task = self.settings.get("task", "skills")
        recipe, knobs = parse_settings(self.settings, Recipe(**_of_task(task)), Knobs())
        check(recipe, knobs)
        if self.text is not None and recipe.task != "text":
            raise SettingsError("The receipt names a text and a task that reads none. One of them is wrong.")
        plan, before = [(0, knobs)], 0
        for step, changes in self.schedule:
            if not before < step <= self.steps:
                raise SettingsError(
                    f"The receipt has a change at step {step} after one at step {before}, in {self.steps} steps. "
                    f"Changes are in the order of their steps."
                )
            if foreign := [name for name in changes if name not in KNOB_FIELDS]:
                raise SettingsError(f"The receipt changes {_quoted(foreign[0])}, which is no knob.")
            _, knobs = parse_settings(dict(changes), recipe, knobs)
            check(recipe, knobs)
            plan.append((step, knobs))
            before = step
        return recipe, plan


def issue(
    recipe: Recipe,
    plan: Sequence[tuple[int, Knobs]],
    rows: np.ndarray,
    *,
    versions: Mapping[str, str],
    device: str,
    machine: Mapping[str, str],
    text: bytes | None = None,
) -> Receipt:
    """The receipt of a run.

    Args:
        recipe: what it built.
        plan: the first step under each knobs, as `Receipt.plan` and `plan_of` give it.
        rows: of its history (`History.since(-1)`), step 0 among them.
        versions, device, machine: what trained it (`moeviz.machine`).
        text: the person's own text, if it learned one.

    Raises:
        SettingsError: the history does not begin with step 0.
    """
    if not len(rows) or rows["step"][0] != 0:
        raise SettingsError("This run's first step is not kept any more, so it has no receipt. Run it from step 0.")
    return Receipt(
        settings=_settings(recipe, plan[0][1]),
        schedule=_schedule(plan),
        steps=int(rows["step"][-1]),
        versions=dict(versions),
        device=device,
        machine=dict(machine),
        first=hash_of(rows[0]),
        last=hash_of(rows[-1]),
        text=None if text is None else hashlib.sha256(text).hexdigest(),
    )


def plan_of(rows: np.ndarray, versions: Mapping[int, Knobs]) -> list[tuple[int, Knobs]]:
    """The first step under each knobs, from a history whose rows say by number which were in force.

    Raises:
        SettingsError: rows around a change were thinned out, and its step is not known for sure. (Of several changes
            that were close to each other, a thinned history keeps the first.)
    """
    step, version = rows["step"].astype(np.int64), rows["version"].astype(np.int64)
    for place in np.flatnonzero(np.diff(version)):
        if step[place + 1] != step[place] + 1:
            raise SettingsError(
                f"This run's history does not tell any more at which step after {step[place]} and up to "
                f"{step[place + 1]} its settings were changed, so it has no receipt. Take the receipt earlier."
            )
    first = np.flatnonzero(np.diff(version, prepend=-1))
    return [(int(step[place]), versions[int(version[place])]) for place in first]


def hash_of(row: np.void) -> str:
    """The SHA-256 of one row of a history: all that is the run's own, little-endian, each column after its name and
    type. Rows that are equal to the bit have equal hashes, whatever the machine; a NaN is a NaN."""
    whole = hashlib.sha256()
    for name in row.dtype.names:
        if name in CIRCUMSTANCES:
            continue
        values = np.asarray(row[name])
        values = values.astype(values.dtype.newbyteorder("<"))
        if values.dtype.kind == "f":
            values = np.where(np.isnan(values), values.dtype.type(np.nan), values).astype(values.dtype)
        whole.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        whole.update(values.tobytes())
    return whole.hexdigest()


def to_json(receipt: Receipt) -> str:
    """A receipt as a file, for `from_json` and for people."""
    told = {"moeviz_receipt": FORMAT, "link": receipt.link, "seed": receipt.seed} | asdict(receipt)
    return json.dumps(told, indent=1) + "\n"


def from_json(text: str | bytes) -> Receipt:
    """The receipt that `to_json` wrote.

    Raises:
        SettingsError: it is none, it is damaged, or it is of another version and cannot be read here.
    """
    told = _object(text)
    if told.get("moeviz_receipt") != FORMAT:
        raise SettingsError(
            f"This receipt has format {_quoted(told.get('moeviz_receipt'))} and this version of moeviz reads {FORMAT}. "
            f"Check it with the version that wrote it."
        )
    values = {name: value for name, value in told.items() if name not in ("moeviz_receipt", "link", "seed")}
    names = {spec.name for spec in fields(Receipt)}
    if values.keys() != names:
        odd = sorted(values.keys() ^ names)[0]
        raise SettingsError(
            f"This receipt {'has an unknown' if odd in values else 'lacks its'} part {_quoted(odd)}. {BRING}"
        )
    _check_shape(values)
    values["schedule"] = tuple((step, changes) for step, changes in values["schedule"])
    try:
        receipt = Receipt(**values)
    except SettingsError as refusal:
        writer = values["versions"].get("moeviz", "another version")
        raise SettingsError(f"The receipt was written by moeviz {_quoted(writer)}: {_visible(str(refusal))}") from None
    for name in ("link", "seed"):
        if name in told and told[name] != getattr(receipt, name):
            raise SettingsError(f"This receipt's {name} and settings contradict each other. {BRING}")
    return receipt


def differences(mine: Receipt, theirs: Receipt) -> list[str]:
    """What is not the same here (mine) and in another receipt (theirs), beside the hashes, in sentences."""
    (my_settings, my_schedule), (their_settings, their_schedule) = _canonical(mine), _canonical(theirs)
    found = _apart("Setting", my_settings, their_settings, "the default")
    found += _apart("The version of", mine.versions, theirs.versions, "unknown")
    found += _apart("The machine's", mine.machine, theirs.machine, "unknown")
    if mine.device != theirs.device:
        found.append(f"The device is {_plain(mine.device)} here and {_plain(theirs.device)} in the receipt.")
    if mine.steps != theirs.steps:
        found.append(f"There are {mine.steps} steps here and {theirs.steps} in the receipt.")
    if my_schedule != their_schedule:
        found.append("What was changed on the way is not the same here and in the receipt.")
    if mine.text != theirs.text:
        found.append("The text that it learned is not the same here and in the receipt.")
    return found


def check_text(receipt: Receipt, text: bytes | None) -> None:
    """Refuse another text than the run learned.

    Raises:
        SettingsError: it is missing, superfluous or not the same.
    """
    if receipt.text is None and text is not None:
        raise SettingsError("This run learned no text of its own. Leave --text out.")
    if receipt.text is not None and text is None:
        raise SettingsError(
            "This run learned somebody's own text, which a receipt does not hold. Bring it: --text FILE."
        )
    if text is not None and hashlib.sha256(text).hexdigest() != receipt.text:
        raise SettingsError("This is not the text that the run learned: their hashes differ. Bring that one.")


def _of_task(task: str) -> dict[str, Any]:
    return {"task": task} | TASK_DEFAULTS[task] if task in TASK_DEFAULTS else {}


def _settings(recipe: Recipe, knobs: Knobs) -> dict[str, str]:
    """What must be said to get these settings: what differs from the defaults, and from the sizes the task brings."""
    brought = asdict(Recipe()) | TASK_DEFAULTS[recipe.task]
    # Both defaults, as in the page's addresses: a size that is the usual one of another task is said.
    told = _changes(brought, asdict(recipe)) | _changes(asdict(Recipe()), asdict(recipe))
    return told | _changes(asdict(Knobs()), asdict(knobs))


def _schedule(plan: Sequence[tuple[int, Knobs]]) -> tuple[tuple[int, dict[str, str]], ...]:
    changes = [(step, _changes(asdict(before), asdict(knobs))) for (_, before), (step, knobs) in pairwise(plan)]
    return tuple((step, changed) for step, changed in changes if changed)


def _canonical(receipt: Receipt) -> tuple[dict[str, str], Any]:
    """Settings and schedule in the words in which they are issued: 3e-3 is 0.003."""
    recipe, plan = receipt.plan()
    return _settings(recipe, plan[0][1]), _schedule(plan)


def _apart(what: str, mine: Mapping[str, str], theirs: Mapping[str, str], without: str) -> list[str]:
    return [
        f"{what} {_plain(name)} is {_plain(mine.get(name, without))} here and {_plain(theirs.get(name, without))} "
        f"in the receipt."
        for name in sorted({*mine, *theirs})
        if mine.get(name) != theirs.get(name)
    ]


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    return {name: _exact(value) for name, value in after.items() if value != before[name]}


def _exact(value: Any) -> str:
    """As people write it, and with every digit where that would be another number."""
    return repr(value) if isinstance(value, float) and float(show(value)) != value else show(value)


def _object(text: str | bytes) -> dict[str, Any]:
    if len(text) > MAX_CHARACTERS:
        raise SettingsError(
            f"This is too long for a receipt: {len(text):,} characters and not {MAX_CHARACTERS:,}. {BRING}"
        )
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict) or "moeviz_receipt" not in told:
        raise SettingsError(f"This is no receipt of moeviz, or it is damaged. {BRING}")
    return told


def _check_shape(values: dict[str, Any]) -> None:
    """Every part is what its name promises, and none too long."""
    steps, schedule, text = values["steps"], values["schedule"], values["text"]
    sound = {
        "settings": _are_texts(values["settings"]),
        "versions": _are_texts(values["versions"]),
        "machine": _are_texts(values["machine"]),
        "device": _is_text(values["device"]),
        "steps": type(steps) is int and 0 <= steps <= MAX_STEPS,
        "schedule": isinstance(schedule, list) and all(map(_is_change, schedule)),
        "first": _is_hash(values["first"]),
        "last": _is_hash(values["last"]),
        "text": text is None or _is_hash(text),
    }
    for name, fine in sound.items():
        if not fine:
            raise SettingsError(f"This receipt's {name} cannot be read. It is damaged. {BRING}")


def _is_change(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is int and _are_texts(entry[1])


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(name) and _is_text(text) for name, text in value.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and HASH.fullmatch(value) is not None


def _quoted(value: Any) -> str:
    """A foreign value as a sentence can repeat it: short, and in characters that can be seen."""
    return _plain(value if isinstance(value, str) else repr(value))


def _plain(text: str) -> str:
    shown = _visible(text)
    return shown if len(shown) <= QUOTED else shown[:QUOTED] + "…"


def _visible(text: str) -> str:
    """Without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
