"""Predict the next byte of real text that is already on this machine: nothing is downloaded.

The default text is Python's own standard library in two known kinds, source code and docstrings; a person may bring a
text of their own. Shapes: S sequences of N bytes, T = S N.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from functools import cache
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
        self.training = [data[:cut] for data, cut in zip(tensors, cuts, strict=True)]
        ends = [data[cut:] for data, cut in zip(tensors, cuts, strict=True)]
        self.held_out = self._windows(ends, Generator().manual_seed(recipe.seed + HELD_OUT_SEED))

    def batch(self, generator: Generator) -> Batch:
        """Windows at random places, the kinds of text in turn."""
        return self._windows(self.training, generator)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, nats per byte; of twins, one axis in front, a value each."""
        *twins, _, size = predictions.shape
        every_T = F.cross_entropy(predictions.reshape(-1, size), targets.repeat(*twins or [1]), reduction="none")
        return every_T.view(*twins, -1).mean(-1)

    def _windows(self, corpora: list[Tensor], generator: Generator) -> Batch:
        windows = []
        for number in range(self.num_sequences):
            corpus = corpora[number % len(corpora)]
            start = int(torch.randint(len(corpus) - self.length, (), generator=generator))
            windows.append(corpus[start : start + self.length + 1])
        window_SN = torch.stack(windows).long().to(self.device)
        domain_S = torch.arange(self.num_sequences, device=self.device) % len(corpora)
        byte_T = window_SN[:, :-1].flatten()
        return Batch(byte_T, window_SN[:, 1:].flatten(), domain_S.repeat_interleave(self.length), token_id_T=byte_T)


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
