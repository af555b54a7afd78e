"""The best few of many log-probabilities, without sorting them. Pure functions.

`torch.topk` looks for its k among all V values of a row at once. Here a row is cut into blocks of 64: a block's largest
value is found by one vectorised pass, the best k values can only lie in the k blocks whose largest values are best, and
only those are looked at closely. For 320 rows of 8,000 and k = 10 that takes half the time, and for k = 1 a sixth.

Shape letters: N rows, W width, k values wanted, R segments, K rows a segment, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

_BLOCK = 64


def best_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [N, W] -> its largest values [N] and where they stand [N] int64."""
    num_rows, width = x.shape
    if width % _BLOCK:
        return x.max(dim=1)
    blocks = x.view(num_rows, -1, _BLOCK)
    block = blocks.amax(dim=2).argmax(dim=1)  # [N]
    index = block[:, None, None].expand(-1, 1, _BLOCK)
    values, at = blocks.gather(1, index).squeeze(1).max(dim=1)
    return values, at.add_(block, alpha=_BLOCK)


def top_of_beams(log_probs: Tensor, totals: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of each segment, over all its rows.

    Args:
        log_probs: [R·K, V] of the next token.
        totals: [R, K] of the rows so far.
        k: how many are wanted; no more than K·V.

    Returns:
        Log-probabilities [R, k] best first, the rows they continue [R, k] and their tokens [R, k], both int64.
    """
    num_segments, num_rows = totals.shape
    width = log_probs.shape[1]
    if width % _BLOCK or k >= num_rows * (width // _BLOCK):
        sums = (log_probs.view(num_segments, num_rows, width) + totals[:, :, None]).flatten(1)
        values, index = sums.topk(k, dim=1)
        return values, index // width, index % width
    num_blocks = width // _BLOCK
    blocks = log_probs.view(num_segments, num_rows * num_blocks, _BLOCK)
    peaks = blocks.amax(dim=2).view(num_segments, num_rows, num_blocks) + totals[:, :, None]
    chosen = peaks.flatten(1).topk(k, dim=1, sorted=False).indices  # [R, k] of K·V/64
    rows = chosen // num_blocks
    candidates = blocks.gather(1, chosen[:, :, None].expand(-1, -1, _BLOCK))  # [R, k, 64]
    candidates += totals.gather(1, rows)[:, :, None]
    values, at = candidates.flatten(1).topk(k, dim=1)
    block = at // _BLOCK
    tokens = (chosen.gather(1, block) % num_blocks) * _BLOCK + at % _BLOCK
    return values, rows.gather(1, block), tokens
