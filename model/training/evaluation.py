"""How good a network is on the dev set, and the mean of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.bleu import corpus_bleu
from model.data.batching import bucketed_batches, collate
from model.data.corpus import Example
from model.data.tokenizer import Tokenizer
from model.network.seq2seq import Seq2Seq
from model.training.loss import batch_loss
from model.translator import Translator

_BATCH_TOKENS = 4096


def dev_bleu(translator: Translator, examples: Sequence[Example], *, k: int) -> float:
    """sacreBLEU of the translations of `examples` against all their references."""
    translations = translator.translate([example.src for example in examples], k=k)
    return corpus_bleu([t.text for t in translations], [list(example.refs) for example in examples])


@torch.inference_mode()
def dev_loss(
    network: Seq2Seq, examples: Sequence[Example], src_tokenizer: Tokenizer, tgt_tokenizer: Tokenizer, device: str
) -> float:
    """Mean cross-entropy a target token on the examples' first references, without smoothing, in nats.

    Leaves the network in evaluation mode.
    """
    network.eval()
    src = src_tokenizer.encode_batch([example.src for example in examples])
    tgt = tgt_tokenizer.encode_batch([example.refs[0] for example in examples])
    batches = bucketed_batches(
        [len(ids) + 1 for ids in src], [len(ids) + 1 for ids in tgt], max_tokens=_BATCH_TOKENS, seed=0, epoch=0
    )
    total, num_tokens = 0.0, 0
    for chosen in batches:
        batch = collate([src[i] for i in chosen], [tgt[i] for i in chosen]).to(device)
        total += float(batch_loss(network, batch)) * batch.num_tgt_tokens
        num_tokens += batch.num_tgt_tokens
    return total / num_tokens


def average_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several checkpoints' weights, name by name."""
    return {name: torch.stack([s[name].float() for s in states]).mean(dim=0) for name in states[0]}


def unshared(network: nn.Module) -> dict[str, Tensor]:
    """Each parameter once, on the CPU, under the first of its names."""
    return {name: p.detach().cpu().contiguous().clone() for name, p in network.named_parameters()}
