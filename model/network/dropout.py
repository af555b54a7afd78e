"""Dropout whose mask is a value: drawn once a sentence where it is variational, applied wherever the sentence goes.

Shape letters: B batch, T time, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Dropouts:
    """Probabilities of a network's dropouts, used while it trains.

    Attributes:
        embedding: on embeddings.
        layer: on what a layer hands to the next.
        recurrent: on the recurrent connection; one mask for all steps.
        readout: before the output layer.
        variational: one mask for all time steps of a sentence on embeddings and between layers
            (Gal and Ghahramani 2016, equation 7).
    """

    embedding: float = 0.0
    layer: float = 0.0
    recurrent: float = 0.0
    readout: float = 0.0
    variational: bool = True


def draw_mask(like: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
    """A mask of `shape` in the dtype and device of `like`: 0 with probability p, else 1 / (1 − p).

    Drawn 16 bits an element, four of them at a time: `bernoulli_` took a twentieth of a training step.
    """
    num_elements = math.prod(shape)
    words = torch.empty((num_elements + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    bits = words.view(torch.int16)[:num_elements].view(shape)  # uniform from -2^15 to 2^15 - 1
    return (bits >= round(p * 2**16) - 2**15).to(like.dtype).mul_(1 / (1 - p))


def apply_dropout(x: Tensor, p: float, *, variational: bool, is_training: bool) -> Tensor:
    """Dropout on x [B, T, F]; variational shares the mask over T."""
    if not is_training or p == 0:
        return x
    num_steps = 1 if variational else x.shape[1]
    return x * draw_mask(x, (x.shape[0], num_steps, x.shape[2]), p)
