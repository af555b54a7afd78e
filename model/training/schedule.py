"""The update of the weights: AdamW, its learning rate over time, and gradients kept within a norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """The schedule's value for update `step` (from 0)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "inverse_sqrt":
        return config.learning_rate * math.sqrt(max(config.warmup_steps, 1) / (step + 1))
    share = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    floor = config.final_learning_rate
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share)))


class Updater:
    """AdamW over a network's parameters (Loshchilov and Hutter 2019); vectors are not decayed."""

    def __init__(self, network: nn.Module, config: TrainingConfig) -> None:
        self._config = config
        self._parameters = list(network.parameters())
        decayed = [p for p in self._parameters if p.dim() > 1]
        plain = [p for p in self._parameters if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=(0.9, config.beta2),
            fused=True,
        )

    def forget_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def update(self, rate: float) -> Tensor:
        """One step with the gradients that are there, scaled down to `clip_norm`.

        Returns:
            The gradients' norm before that. Where it is no number, the weights are left as they were.
        """
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            return norm
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The optimizer's kernel divides by this as it reads a gradient: no pass over all gradients of its own.
        self.optimizer.grad_scale = (norm / (self._config.clip_norm or math.inf)).clamp(min=1.0)  # type: ignore[attr-defined]
        self.optimizer.step()
        return norm

    def state(self) -> dict[str, Tensor]:
        """The moments as tensors with names."""
        return {
            f"{index}.{key}": value
            for index, entry in self.optimizer.state_dict()["state"].items()
            for key, value in entry.items()
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Takes up what `state` gave."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value.clone()  # the file is mapped, not read
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
