"""What training minimises: cross-entropy over the valid target tokens.

Shape letters: B batch, S source length, T target length, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.data.batching import Batch
from model.data.vocab import BOS_ID
from model.network.seq2seq import Seq2Seq

_BLOCK_ELEMENTS = 1 << 21  # 8 MB of float32 logits: within the cache that the cores share
_ROW_MULTIPLE = 64  # oneDNN compiles a product for each number of rows, and every batch has another number of tokens


def masked_cross_entropy(logits: Tensor, label_ids: Tensor, lens: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over valid positions: the course's masked loss.

    Args:
        logits: [B, T, V] float.
        label_ids: [B, T] int64.
        lens: [B] int64, valid lengths.
    """
    mask = torch.arange(label_ids.shape[1], device=lens.device) < lens[:, None]
    return F.cross_entropy(logits[mask].float(), label_ids[mask], label_smoothing=label_smoothing)


class _OutputLoss(torch.autograd.Function):
    """Output layer and label-smoothed cross-entropy of N tokens, a few at a time.

    The logits of a batch are the largest tensor of a step by far (1,000 tokens × 8,000 words: 32 MB), and plain code
    reads and writes it ten times. Here a block of rows stays in the cache until its gradient is there, which is kept in
    the products' precision.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, label_ids: Tensor, smoothing: float) -> Tensor:
        """x [N, F], weight [V, F], bias [V], label_ids [N] int64 -> the sum over tokens, [] float32 or better."""
        vocab_size = weight.shape[0]
        total = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
        keep = any(ctx.needs_input_grad)
        grad_logits = x.new_empty((x.shape[0] + -x.shape[0] % _ROW_MULTIPLE, vocab_size) if keep else (0, vocab_size))
        grad_logits[x.shape[0] :] = 0
        num_rows = max(1, _BLOCK_ELEMENTS // vocab_size)
        for start in range(0, x.shape[0], num_rows):
            rows = slice(start, min(start + num_rows, x.shape[0]))
            labels = label_ids[rows, None]
            log_probs = torch.addmm(bias, x[rows], weight.t()).to(total.dtype).log_softmax(dim=1)  # [rows, V]
            total -= (1 - smoothing) * log_probs.gather(1, labels).sum()
            if smoothing:
                total -= smoothing / vocab_size * log_probs.sum()
            if keep:
                grad = log_probs.exp_().sub_(smoothing / vocab_size)
                grad.scatter_add_(1, labels, grad.new_full(labels.shape, smoothing - 1))
                grad_logits[rows] = grad
        ctx.save_for_backward(x, weight, grad_logits)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, grad_logits = ctx.saved_tensors
        num_rows, scale = x.shape[0], grad.to(x.dtype)
        padded = F.pad(x * scale, (0, 0, 0, grad_logits.shape[0] - num_rows))
        grad_x = (grad_logits @ weight)[:num_rows] * scale
        return grad_x, grad_logits.t() @ padded, grad_logits.sum(0) * scale, None, None


class SummedLoss(nn.Module):
    """The network and its loss as one module: what DistributedDataParallel wraps.

    Returns the sum over tokens, not their mean: the mean is over all processes' tokens, which only the caller knows.
    """

    def __init__(self, network: Seq2Seq, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.network = network
        self.label_smoothing = label_smoothing

    def forward(self, src_ids: Tensor, src_lens: Tensor, tgt_ids: Tensor, tgt_lens: Tensor) -> Tensor:
        """A batch -> [] float; the output layer sees valid positions only."""
        mask = torch.arange(tgt_ids.shape[1], device=tgt_lens.device) < tgt_lens[:, None]
        bos = tgt_ids.new_full((tgt_ids.shape[0], 1), BOS_ID)
        readouts = self.network.readouts(src_ids, src_lens, torch.cat((bos, tgt_ids[:, :-1]), dim=1))
        valid = readouts[mask]  # [N, F]
        output, dtype = self.network.decoder.output, valid.dtype
        with torch.autocast(valid.device.type, enabled=False):
            total = _OutputLoss.apply(  # type: ignore[no-untyped-call]
                valid, output.weight.to(dtype), output.bias.to(dtype), tgt_ids[mask], self.label_smoothing
            )
        return cast(Tensor, total)


def batch_loss(network: Seq2Seq, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """`masked_cross_entropy` of a batch under teacher forcing."""
    total: Tensor = SummedLoss(network, label_smoothing)(*batch)
    return total / batch.num_tgt_tokens
