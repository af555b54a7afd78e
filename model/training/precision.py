"""Which precision a run's matrix products are made in."""

from __future__ import annotations

import math
import time

import torch
import torch.nn.functional as F

from model.config import Preset

_CLEARLY_FASTER = 1.5


def choose_precision(preset: Preset, device: str) -> str:
    """`fp32` or `bf16`; `auto` is measured, on a product of the model's own size.

    bf16 has to win clearly: the products are half of a step's time, and casting costs some.
    """
    if preset.training.precision != "auto":
        return preset.training.precision
    if device == "cuda":
        return "bf16"
    dim = preset.model.decoder_dim
    x, weight = torch.randn(max(16, preset.training.batch_tokens // 16), dim), torch.randn(4 * dim, dim)
    seconds: dict[torch.dtype, float] = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for _ in range(7):
        for dtype in seconds:
            cast_x, cast_weight = x.to(dtype), weight.to(dtype)
            started = time.perf_counter()
            F.linear(cast_x, cast_weight)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - started)
    return "bf16" if seconds[torch.float32] > _CLEARLY_FASTER * seconds[torch.bfloat16] else "fp32"
