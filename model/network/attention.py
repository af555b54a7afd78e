"""Attention: how a decoder state looks up the source. Knows no recurrence and no vocabulary.

Shape letters: B batch, Q queries an entry, S source length, H query width, M memory width, A key width.

What can be computed once for a sentence is: `keys` projects the memory, and every step then only meets its query with
them. Queries come as [B, Q, H], so that a training batch (Q = T) and the k rows of a beam (Q = k) share one product
with a memory that is kept once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.errors import InvalidValue

_NEVER = float("-inf")


class Attention(nn.Module):
    """Base of the score functions: softmax over the valid source positions, then the weighted sum of the memory."""

    num_heads = 1

    def keys(self, memory: Tensor) -> Tensor:
        """memory [B, S, M] -> keys [B, S, A]."""
        raise NotImplementedError

    def queries(self, state: Tensor) -> Tensor:
        """Decoder states [..., H] as they meet the keys: [..., A]."""
        return state

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """queries [B, Q, A], keys [B, S, A] -> [B, Q, S], or [B, heads, Q, S] with several heads."""
        raise NotImplementedError

    def forward(self, query: Tensor, keys: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Looks decoder states up: query [B, Q, H]; the rest as in `look_up`."""
        return self.look_up(self.queries(query), keys, memory, mask)

    def look_up(self, queries: Tensor, keys: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Looks the queries up.

        Args:
            queries: [B, Q, A] float, from `queries`.
            keys: [B, S, A], from `keys`.
            memory: [B, S, M].
            mask: [B, S] bool, True = valid.

        Returns:
            The context [B, Q, M] and the weights [B, Q, S] (their mean over the heads).
        """
        scores = self.scores(queries, keys)
        if self.num_heads == 1:
            weights = torch.where(mask[:, None], scores, _NEVER).softmax(dim=-1)  # [B, Q, S]
            return weights @ memory, weights
        weights = torch.where(mask[:, None, None], scores, _NEVER).softmax(dim=-1)  # [B, heads, Q, S]
        parts = memory.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, S, M / heads]
        return (weights @ parts).transpose(1, 2).flatten(2), weights.mean(dim=1)


class DotAttention(Attention):
    """score = qᵀ k (Luong et al. 2015, equation 8, dot); widths must agree."""

    def __init__(self, query_dim: int, memory_dim: int) -> None:
        super().__init__()
        if query_dim != memory_dim:
            raise InvalidValue("attention", "dot", f"dot only for equal widths, not {query_dim} and {memory_dim}")

    def keys(self, memory: Tensor) -> Tensor:
        return memory

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        return queries @ keys.transpose(1, 2)


class GeneralAttention(DotAttention):
    """score = qᵀ W k (Luong et al. 2015, equation 8, general); W meets the memory, once a sentence."""

    def __init__(self, query_dim: int, memory_dim: int) -> None:
        super().__init__(query_dim, query_dim)
        self.project = nn.Linear(memory_dim, query_dim, bias=False)

    def keys(self, memory: Tensor) -> Tensor:
        projected: Tensor = self.project(memory)
        return projected


class AdditiveAttention(Attention):
    """score = vᵀ tanh(W q + U k) (Bahdanau et al. 2015, appendix A.1.2), with one or several heads.

    Several heads split the key width and the memory (Chen et al. 2018, section 3).
    """

    def __init__(self, query_dim: int, memory_dim: int, attention_dim: int, num_heads: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.project_query = nn.Linear(query_dim, attention_dim)
        self.project_memory = nn.Linear(memory_dim, attention_dim, bias=False)
        self.score = nn.Parameter(torch.empty(attention_dim))
        nn.init.normal_(self.score, std=1 / math.sqrt(attention_dim // num_heads))

    def keys(self, memory: Tensor) -> Tensor:
        projected: Tensor = self.project_memory(memory)
        return projected

    def queries(self, state: Tensor) -> Tensor:
        projected: Tensor = self.project_query(state)
        return projected

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        energy = torch.tanh(queries[:, :, None] + keys[:, None])  # [B, Q, S, A]
        if self.num_heads == 1 and self.training:
            return energy @ self.score
        if self.num_heads == 1:  # slower, but no row's sum depends on how many rows there are
            return (energy * self.score).sum(dim=-1)
        by_head: Tensor = (energy * self.score).unflatten(-1, (self.num_heads, -1)).sum(dim=-1)  # [B, Q, S, heads]
        return by_head.permute(0, 3, 1, 2)


def build_attention(config: ModelConfig) -> Attention | None:
    """The attention that a config asks for; None for `none`."""
    if config.attention == "none":
        return None
    if config.attention == "dot":
        return DotAttention(config.decoder_dim, config.memory_dim)
    if config.attention == "general":
        return GeneralAttention(config.decoder_dim, config.memory_dim)
    return AdditiveAttention(config.decoder_dim, config.memory_dim, config.attention_dim, config.attention_heads)
