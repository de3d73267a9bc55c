"""A task whose right answer is known: one latent skill per token, each its own random function.

A token is noise + the mean of its skill + a direction common to all tokens. Its target is its skill's own tanh network
of the noise alone, so a good router sends each skill to experts of its own. The common direction is what makes routing
collapse: whichever experts it favours are favoured by every token. Without it nothing collapses and balancing looks
useless. Shapes: T tokens, C skills, d model width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from moeviz.config import Recipe
from moeviz.experts import grouped_mm_works
from moeviz.tasks import Batch

NUM_SKILLS = 16
ZIPF_EXPONENT = 0.5  # frequency of skill number c is proportional to c^-0.5
SEPARATION = 0.7  # norm of a skill's own mean, in units of sqrt(d)
COMMON_NORM = 2.5  # norm of the direction common to all tokens, in units of sqrt(d)
LABEL_NOISE = 0.05
HELD_OUT_SEED = 1_000_003


class SkillsTask:
    """Endless batches of `tokens_per_step` tokens; the loss is the mean squared error.

    Targets have unit variance, so the loss is about the fraction of variance left unexplained: 1 predicts the mean.
    """

    def __init__(self, recipe: Recipe, device: str) -> None:
        C, d = NUM_SKILLS, recipe.d_model
        self.tokens, self.device, self.output_size = recipe.tokens_per_step, device, d
        self.num_domains = C
        draw = Generator().manual_seed(recipe.seed)
        self.frequency_C = torch.arange(1, C + 1, dtype=torch.float32) ** -ZIPF_EXPONENT
        common_d = torch.randn(d, generator=draw)
        self.mean_Cd = SEPARATION * torch.randn(C, d, generator=draw) + common_d * (
            COMMON_NORM * d**0.5 / common_d.norm()
        )
        self.w1_Cdd = torch.randn(C, d, d, generator=draw) * d**-0.5
        self.w2_Cdd = torch.randn(C, d, d, generator=draw) * d**-0.5
        sample_Ctd = self._answer(torch.randn(C, 512, d, generator=draw), slice(None))
        self.scale = float(sample_Ctd.std())
        self.held_out = self.batch(Generator().manual_seed(recipe.seed + HELD_OUT_SEED))

    def batch(self, generator: Generator) -> Batch:
        """Draw tokens skill by skill, then shuffle them, so that every sequence mixes skills."""
        drawn_T = torch.multinomial(self.frequency_C, self.tokens, replacement=True, generator=generator)
        noise_Td = torch.randn(self.tokens, self.output_size, generator=generator)
        label_noise_Td = torch.randn(self.tokens, self.output_size, generator=generator)
        order_T = torch.randperm(self.tokens, generator=generator)
        count_C = torch.bincount(drawn_T, minlength=NUM_SKILLS)
        skill_T = torch.repeat_interleave(count_C, output_size=self.tokens)  # what was drawn, sorted
        input_Td = self.mean_Cd.index_select(0, skill_T).add_(noise_Td).index_select(0, order_T)
        answer_Td = self._answers(noise_Td, count_C)
        target_Td = answer_Td.div_(self.scale).add_(label_noise_Td.mul_(LABEL_NOISE)).index_select(0, order_T)
        columns = (input_Td, target_Td, skill_T.index_select(0, order_T), sign_pattern(input_Td))
        return Batch(*(column.to(self.device) for column in columns))

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error over tokens and dimensions of predictions (..., T, d): a value for each axis in front."""
        return F.mse_loss(predictions, targets.expand_as(predictions), reduction="none").mean((-2, -1))

    def _answers(self, noise_Td: Tensor, count_C: Tensor) -> Tensor:
        """`_answer` of tokens sorted by skill, so many of each; to the bit the same either way."""
        if grouped_mm_works("cpu"):
            ends_C = count_C.cumsum(0, dtype=torch.int32)
            hidden_Td = F.grouped_mm(noise_Td, self.w1_Cdd, offs=ends_C).tanh_()
            return F.grouped_mm(hidden_Td, self.w2_Cdd, offs=ends_C)
        return torch.cat([self._answer(part, skill) for skill, part in enumerate(noise_Td.split(count_C.tolist()))])

    def _answer(self, noise: Tensor, skill: int | slice) -> Tensor:
        return (noise @ self.w1_Cdd[skill]).tanh() @ self.w2_Cdd[skill]


def sign_pattern(x_Td: Tensor) -> Tensor:
    """The signs of a token's first 8 coordinates as a number from 0 to 255: a token id where there are no words.

    `x_Td` is on the CPU. A coordinate that a short vector lacks counts as not positive.
    """
    bits_TB = np.packbits(x_Td.numpy() > 0, axis=1, bitorder="little")  # NumPy compares bytes 5 times faster than torch
    return torch.from_numpy(bits_TB[:, 0].astype(np.int64))
