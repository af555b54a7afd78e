"""Which precision a run's matrix products are made in."""

from __future__ import annotations

import torch

from model.config import Preset

_SMALLEST_DIM = 128  # below, casting costs more than the products save


def choose_precision(preset: Preset, device: str) -> str:
    """`fp32` or `bf16`; `auto` is bf16 on a GPU, and on a processor that multiplies bf16 in hardware.

    By rule, not by measuring: the same run on the same machine is to give the same weights, whatever else the machine
    does at the moment. An AVX-512 machine multiplies bf16 two to four times as fast as fp32.
    """
    if preset.training.precision != "auto":
        return preset.training.precision
    if device == "cuda":
        return "bf16"
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if has_bf16 and preset.model.decoder_dim >= _SMALLEST_DIM else "fp32"
