"""How does a person check a receipt?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from moeviz import receipt
from moeviz.cli import options
from moeviz.config import SettingsError


@click.command()
@click.argument("path", metavar="RECEIPT", type=click.Path(path_type=Path))
@click.option("--text", "text_file", type=click.Path(path_type=Path), help="The text that the run learned.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def check(path: Path, text_file: Path | None, as_json: bool) -> None:
    """Train a receipt's run again here, and say whether it is the same.

    RECEIPT is a file that `python -m moeviz run --receipt` or the page wrote. Compared are the hashes of the first row
    of the history (the untrained model) and of the last. On the same kind of machine with the same versions both are
    the same; elsewhere the first one often is, and what differs is printed. The exit code is 0 if both are the same and
    1 if not.
    """
    try:
        theirs = receipt.from_json(options.content(path, receipt.MAX_CHARACTERS + 1))
        text = options.content(text_file) if text_file else None
        receipt.check_text(theirs, text)
        mine = _again(theirs, text)
    except SettingsError as refusal:
        raise click.ClickException(str(refusal)) from None
    same = {"first": mine.first == theirs.first, "last": mine.last == theirs.last}
    reasons = receipt.differences(mine, theirs)
    if as_json:
        here = json.loads(receipt.to_json(mine))
        click.echo(json.dumps({"same": all(same.values())} | same | {"differences": reasons, "here": here}))
    else:
        click.echo(f"First row (step 0): {_verdict(same['first'])}.")
        click.echo(f"Last row (step {theirs.steps}): {_verdict(same['last'])}.")
        for reason in reasons or ([] if all(same.values()) else [receipt.UNEXPLAINED]):
            click.echo(reason)
    if not all(same.values()):
        sys.exit(1)


def _again(theirs: receipt.Receipt, text: bytes | None) -> receipt.Receipt:
    from moeviz import again

    with click.progressbar(length=theirs.steps, label="Training", file=sys.stderr) as bar:
        return again.train(theirs, text, bar.update)


def _verdict(same: bool) -> str:
    return "the same, to the bit" if same else "not the same"
