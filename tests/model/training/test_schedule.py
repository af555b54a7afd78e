"""The update of the weights, against torch's own clipping and AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.config import TrainingConfig
from model.training.schedule import Updater


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 100.0])
def test_an_update_is_clipping_and_adamw(clip_norm: float) -> None:
    torch.manual_seed(1)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    config = TrainingConfig(clip_norm=clip_norm, weight_decay=0.1, learning_rate=0.01)
    updater = Updater(ours, config)
    oracle = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, config.beta2),
    )
    for _ in range(4):
        x = torch.randn(7, 5)
        for network in (ours, theirs):
            network.zero_grad()
            network(x).square().sum().backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm or 1e9)
        oracle.step()
        assert updater.update(0.01) == pytest.approx(float(expected))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    network = nn.Linear(5, 3)
    before = network.weight.detach().clone()
    network(torch.full((1, 5), float("inf"))).sum().backward()
    assert not torch.isfinite(Updater(network, TrainingConfig()).update(0.01))
    assert torch.equal(network.weight, before)
