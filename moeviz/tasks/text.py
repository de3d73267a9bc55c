"""Predict the next byte of real text that is already on this machine: nothing is downloaded.

The default text is Python's own standard library in two known kinds, source code and docstrings; a person may bring a
text of their own. Shapes: S sequences of N bytes, T = S N.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from functools import cache
from itertools import accumulate, cycle, islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from moeviz.config import HELD_OUT_SHARE, Recipe, check_text
from moeviz.tasks import Batch

MAX_SOURCE_BYTES = 1_500_000  # enough for minutes of training, read in about a second
HELD_OUT_SEED = 1_000_003


class TextTask:
    """Random windows of text; the loss is the cross-entropy of the next byte, in nats.

    Raises:
        SettingsError: the text is too short to cut training and held-out windows from.
    """

    output_size = 256

    def __init__(self, recipe: Recipe, device: str, text: bytes | None = None) -> None:
        self.num_sequences, self.length, self.device = recipe.num_sequences, recipe.sequence_length, device
        corpora = (text,) if text is not None else standard_library()
        self.num_domains = len(corpora)
        for corpus in corpora:
            check_text(corpus, self.length)
        tensors = [torch.frombuffer(bytearray(corpus), dtype=torch.uint8) for corpus in corpora]
        cuts = [int(len(data) * (1 - HELD_OUT_SHARE)) for data in tensors]
        ends = [data[cut:] for data, cut in zip(tensors, cuts, strict=True)]
        domain_S = torch.arange(self.num_sequences, device=device) % len(corpora)
        self._domain_T = domain_S.repeat_interleave(self.length)  # of every batch
        self.held_out = self._batch(self._windows(ends), Generator().manual_seed(recipe.seed + HELD_OUT_SEED))
        self._training = self._windows([data[:cut] for data, cut in zip(tensors, cuts, strict=True)])

    def batch(self, generator: Generator) -> Batch:
        """Windows at random places, the kinds of text in turn."""
        return self._batch(self._training, generator)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, nats per byte, of predictions (..., T, 256): a value for each axis in front."""
        target_RT = targets.expand(predictions.shape[:-1])
        every_P = F.cross_entropy(predictions.flatten(0, -2), target_RT.flatten(), reduction="none")
        return every_P.view_as(target_RT).mean(-1)

    def _windows(self, corpora: list[Tensor]) -> _Windows:
        return _Windows(corpora, self.length, self.num_sequences)

    def _batch(self, windows: _Windows, generator: Generator) -> Batch:
        window_SN = windows.draw(generator).to(self.device)
        byte_T = window_SN[:, :-1].flatten()
        return Batch(byte_T, window_SN[:, 1:].flatten(), self._domain_T, token_id_T=byte_T)


class _Windows:
    """All the windows of N + 1 bytes in some kinds of text, to draw S of them from, the kinds in turn."""

    def __init__(self, corpora: list[Tensor], length: int, num_sequences: int) -> None:
        # Laid end to end and seen from every place: a view. A window across two texts is there and never drawn.
        self._window_PN = torch.cat(corpora).unfold(0, length + 1, 1)
        begins = accumulate((len(corpus) for corpus in corpora), initial=0)
        kinds = [(begin, len(corpus) - length) for begin, corpus in zip(begins, corpora, strict=False)]
        begin_S, self._places_S = zip(*islice(cycle(kinds), num_sequences), strict=True)
        self._begin_S, self._start_S = torch.tensor(begin_S), torch.empty(num_sequences, dtype=torch.long)
        self._starts_S = self._start_S.unbind()  # its numbers one by one, to be drawn in place

    def draw(self, generator: Generator) -> Tensor:
        """Windows at random places, shape (S, N + 1). One draw after another, since each text has its own length."""
        for start, places in zip(self._starts_S, self._places_S, strict=True):
            start.random_(places, generator=generator)
        return self._window_PN.index_select(0, self._begin_S + self._start_S).long()


@cache
def standard_library() -> tuple[bytes, bytes]:
    """Source code without docstrings, and docstrings, of the Python that runs this."""
    code, prose, size = [], [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = path.read_text(encoding="utf-8", errors="replace")
        documented = _docstrings(source)
        prose += documented
        code.append(_without(source, documented))
        size += len(source)
        if size > MAX_SOURCE_BYTES:
            break
    return "\n".join(code).encode(), "\n\n".join(prose).encode()


def _docstrings(source: str) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # an odd escape in somebody else's source is no news here
        tree = ast.parse(source)
    found = (ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in found if text]


def _without(source: str, passages: list[str]) -> str:
    for passage in passages:
        source = source.replace(passage, "")
    return source
