"""Dropout masks: what they share, and that they keep the mean."""

from __future__ import annotations

import pytest
import torch

from model.network.dropout import apply_dropout, draw_mask

B, T, F = 3, 5, 70


def test_a_mask_holds_zeros_and_the_inverse_of_what_is_kept() -> None:
    mask = draw_mask(torch.zeros(1, dtype=torch.float64), (100, 100), 0.2)
    assert mask.dtype == torch.float64
    assert sorted(mask.unique().tolist()) == pytest.approx([0, 1.25])
    assert mask.mean().item() == pytest.approx(1, abs=0.03)


def test_a_variational_mask_is_one_for_all_steps_of_a_sentence() -> None:
    dropped = apply_dropout(torch.ones(B, T, F), 0.5, variational=True, is_training=True)
    assert torch.equal(dropped, dropped[:, :1].expand(-1, T, -1))
    assert not torch.equal(dropped[0], dropped[1])


def test_a_plain_mask_differs_from_step_to_step() -> None:
    dropped = apply_dropout(torch.ones(B, T, F), 0.5, variational=False, is_training=True)
    assert not torch.equal(dropped[:, 0], dropped[:, 1])


@pytest.mark.parametrize(("p", "is_training"), [(0.0, True), (0.5, False)])
def test_without_training_or_probability_nothing_is_dropped(p: float, is_training: bool) -> None:
    x = torch.randn(B, T, F)
    assert apply_dropout(x, p, variational=True, is_training=is_training) is x
