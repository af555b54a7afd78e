"""The loss against torch's cross-entropy on the whole logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import model.training.loss
from model.training.loss import _OutputLoss


@pytest.fixture(params=[1, 3, 100], ids=lambda rows: f"{rows} rows a block")
def inputs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    monkeypatch.setattr(model.training.loss, "_BLOCK_ELEMENTS", 11 * request.param)
    torch.manual_seed(1)
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((7, 5), (11, 5), (11,)))
    return x, weight, bias, torch.randint(0, 11, (7,))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_output_layer_and_loss_by_blocks_equal_the_whole(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor], smoothing: float
) -> None:
    *floats, labels = inputs
    ours, theirs = ([t.clone().requires_grad_() for t in floats] for _ in range(2))
    total = _OutputLoss.apply(*ours, labels, smoothing)
    x, weight, bias = theirs
    expected = F.cross_entropy(x @ weight.t() + bias, labels, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(total, expected)
    (3 * total).backward()
    (3 * expected).backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_without_gradients_the_sum_is_the_same(inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    *floats, labels = inputs
    with torch.inference_mode():
        quiet = _OutputLoss.apply(*floats, labels, 0.1)
    assert torch.equal(quiet, _OutputLoss.apply(floats[0].clone().requires_grad_(), *floats[1:], labels, 0.1).detach())


def test_bf16_logits_are_summed_in_float32(inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    *floats, labels = inputs
    assert _OutputLoss.apply(*(t.bfloat16() for t in floats), labels, 0.1).dtype == torch.float32
