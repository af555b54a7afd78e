"""The best few of many scores, without sorting them. Pure functions.

`torch.topk` looks for its k among all V values of a row at once. Here a row is cut into blocks of 64: a block's largest
value is known already or found by one vectorised pass, the best k values can only lie in the k blocks whose largest
values are best, and only those are looked at closely. The kernels do that, where they are; else torch's operations,
which for 320 rows of 8,000 and k = 10 take half the time of `topk`, and for k = 1 a sixth.

What comes back are NumPy arrays: a search's bookkeeping is over few numbers, and NumPy does it in about half the time
that torch takes, without giving up the interpreter's lock at every operation.

Shape letters: N rows, W width, k values wanted, R segments, K rows a segment, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.network.kernels import best_few, library
from model.network.token_scores import BLOCK, TokenScores


def best_of(scores: TokenScores) -> tuple[np.ndarray, np.ndarray]:
    """The largest log-probability of each row [N] float32, and its token [N] int64."""
    if _has_kernels(scores):
        best, _, best_tokens = _by_kernels(scores, None, 1)
        return best[:, 0], best_tokens[:, 0]
    log_probs = scores.log_probs()
    if not scores.is_in_blocks:
        return _numbers(*log_probs.max(dim=1))
    block = scores.peaks().argmax(dim=1)  # [N]
    index = block[:, None, None].expand(-1, 1, BLOCK)
    values, at = log_probs.view(len(scores), -1, BLOCK).gather(1, index).squeeze(1).max(dim=1)  # of [N, 64]
    return _numbers(values, at.add_(block, alpha=BLOCK))


def top_of_beams(scores: TokenScores, totals: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best continuations of each segment, over all its rows.

    Args:
        scores: of the next token, of R·K rows.
        totals: [R, K] float32 of the rows so far; -inf for a dead one.
        k: how many are wanted; no more than K·V.

    Returns:
        Log-probabilities [R, k] float32 best first, the rows they continue [R, k] and their tokens [R, k], both int64.
    """
    so_far = torch.from_numpy(totals)
    if _has_kernels(scores):
        return _by_kernels(scores, so_far, k)
    return _numbers(*_top_by_operations(scores, so_far.to(scores.logits.device), k))


def _top_by_operations(scores: TokenScores, totals: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    num_segments, num_rows = totals.shape
    log_probs, width = scores.log_probs(), scores.logits.shape[1]
    if not scores.is_in_blocks or k >= num_rows * (width // BLOCK):
        sums = (log_probs.view(num_segments, num_rows, width) + totals[:, :, None]).flatten(1)
        values, index = sums.topk(k, dim=1)
        return values, index // width, index % width
    num_blocks = width // BLOCK
    blocks = log_probs.view(num_segments, num_rows * num_blocks, BLOCK)
    peaks = scores.peaks().view(num_segments, num_rows, num_blocks) + totals[:, :, None]
    chosen = peaks.flatten(1).topk(k, dim=1, sorted=False).indices  # [R, k] of K·V/64
    rows = chosen // num_blocks
    candidates = blocks.gather(1, chosen[:, :, None].expand(-1, -1, BLOCK))  # [R, k, 64]
    candidates += totals.gather(1, rows)[:, :, None]
    values, at = candidates.flatten(1).topk(k, dim=1)
    block = at // BLOCK
    tokens = (chosen.gather(1, block) % num_blocks) * BLOCK + at % BLOCK
    return values, rows.gather(1, block), tokens


def _numbers(*tensors: Tensor) -> tuple[Any, ...]:
    """Tensors of one shape as arrays. From a GPU they come in one piece: the only thing that a step waits for."""
    if tensors[0].is_cpu:
        return tuple(tensor.numpy() for tensor in tensors)
    together = torch.stack([tensor.double() for tensor in tensors]).cpu()
    return tuple(part.to(tensor.dtype).numpy() for part, tensor in zip(together, tensors, strict=True))


def _has_kernels(scores: TokenScores) -> bool:
    return scores.is_in_blocks and scores.logits.is_cpu and library() is not None


def _by_kernels(scores: TokenScores, totals: Tensor | None, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = best_few(scores.logits, scores.peaks(), scores.log_norms, scores.num_forbidden, totals, k)
    return found[0].numpy(), found[1].numpy(), found[2].numpy()
