"""What training minimises: cross-entropy over the valid target tokens.

Shape letters: B batch, S source length, T target length, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.data.batching import Batch
from model.data.vocab import BOS_ID
from model.network.seq2seq import Seq2Seq


def masked_cross_entropy(logits: Tensor, label_ids: Tensor, lens: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over valid positions: the course's masked loss.

    Args:
        logits: [B, T, V] float.
        label_ids: [B, T] int64.
        lens: [B] int64, valid lengths.
    """
    mask = torch.arange(label_ids.shape[1], device=lens.device) < lens[:, None]
    return F.cross_entropy(logits[mask].float(), label_ids[mask], label_smoothing=label_smoothing)


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
        logits = self.network.decoder.output(readouts[mask]).float()
        return F.cross_entropy(logits, tgt_ids[mask], label_smoothing=self.label_smoothing, reduction="sum")


def batch_loss(network: Seq2Seq, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """`masked_cross_entropy` of a batch under teacher forcing."""
    total: Tensor = SummedLoss(network, label_smoothing)(*batch)
    return total / batch.num_tgt_tokens
