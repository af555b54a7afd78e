"""Attention against loops over single positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.errors import InvalidValue
from model.network.attention import AdditiveAttention, Attention, DotAttention, GeneralAttention, build_attention

B, Q, S, H, M, A = 3, 5, 7, 6, 12, 8
LENS = torch.tensor([7, 1, 4])
MASK = torch.arange(S) < LENS[:, None]


def dot_score(attention: Attention, query: Tensor, value: Tensor) -> list[float]:
    return [float(query @ value)]


def general_score(attention: Attention, query: Tensor, value: Tensor) -> list[float]:
    return [float(query @ (cast(GeneralAttention, attention).project.weight @ value))]


def additive_score(attention: Attention, query: Tensor, value: Tensor) -> list[float]:
    ours = cast(AdditiveAttention, attention)
    summed = ours.project_query.weight @ query + ours.project_query.bias + ours.project_memory.weight @ value
    width = A // ours.num_heads
    energy = ours.score * torch.tanh(summed)
    return [float(energy[head * width : (head + 1) * width].sum()) for head in range(ours.num_heads)]


VARIANTS: dict[str, tuple[Callable[[], Attention], int, Callable[[Attention, Tensor, Tensor], list[float]]]] = {
    "dot": (lambda: DotAttention(M, M), M, dot_score),
    "general": (lambda: GeneralAttention(H, M), H, general_score),
    "additive": (lambda: AdditiveAttention(H, M, A), H, additive_score),
    "additive-4-heads": (lambda: AdditiveAttention(H, M, A, 4), H, additive_score),
}
variants = pytest.mark.parametrize("name", sorted(VARIANTS))


def make(name: str) -> tuple[Attention, Tensor, Tensor]:
    build, query_dim, _ = VARIANTS[name]
    memory = torch.randn(B, S, M, dtype=torch.float64)
    return build().double(), torch.randn(B, Q, query_dim, dtype=torch.float64), memory


@variants
@torch.no_grad()
def test_attention_equals_loops_over_queries_heads_and_positions(name: str) -> None:
    attention, query, memory = make(name)
    context, weights = attention(query, attention.keys(memory), memory, MASK)
    assert (context.shape, weights.shape) == ((B, Q, M), (B, Q, S))
    for b in range(B):
        for q in range(Q):
            scores = [VARIANTS[name][2](attention, query[b, q], memory[b, s]) for s in range(int(LENS[b]))]
            slice_dim = M // attention.num_heads
            mean_weights = torch.zeros(S, dtype=torch.float64)
            for head in range(attention.num_heads):
                powers = [math.exp(score[head]) for score in scores]
                shares = torch.tensor([power / sum(powers) for power in powers], dtype=torch.float64)
                part = slice(head * slice_dim, (head + 1) * slice_dim)
                torch.testing.assert_close(context[b, q, part], shares @ memory[b, : len(shares), part])
                mean_weights[: len(shares)] += shares / attention.num_heads
            torch.testing.assert_close(weights[b, q], mean_weights)


@variants
@torch.no_grad()
def test_weights_are_shares_of_the_valid_positions(name: str) -> None:
    attention, query, memory = make(name)
    _, weights = attention(query, attention.keys(memory), memory, MASK)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, Q, dtype=torch.float64))
    assert not weights.masked_select(~MASK[:, None]).any()


@variants
@torch.no_grad()
def test_what_stands_in_padding_changes_nothing(name: str) -> None:
    attention, query, memory = make(name)
    other = torch.where(MASK[..., None], memory, 1e3)
    first = attention(query, attention.keys(memory), memory, MASK)
    second = attention(query, attention.keys(other), other, MASK)
    torch.testing.assert_close(first, second)


@variants
@torch.no_grad()
def test_all_queries_at_once_equal_one_after_the_other(name: str) -> None:
    attention, query, memory = make(name)
    keys = attention.keys(memory)
    context, _ = attention(query, keys, memory, MASK)
    singles = [attention(query[:, q : q + 1], keys, memory, MASK)[0] for q in range(Q)]
    torch.testing.assert_close(context, torch.cat(singles, dim=1))


def test_dot_refuses_unequal_widths() -> None:
    with pytest.raises(InvalidValue, match="equal widths, not 6 and 12"):
        DotAttention(H, M)


def test_attention_is_built_by_its_name() -> None:
    config = ModelConfig(encoder_dim=H, decoder_dim=M, attention_dim=A)  # both directions: memory of width M
    assert build_attention(replace(config, attention="none")) is None
    assert type(build_attention(replace(config, attention="dot"))) is DotAttention
    assert type(build_attention(replace(config, attention="general"))) is GeneralAttention
    additive = build_attention(replace(config, attention="additive", attention_heads=4))
    assert type(additive) is AdditiveAttention
    assert additive.num_heads == 4
