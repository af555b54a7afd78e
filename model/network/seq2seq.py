"""The whole network: encoder and decoder behind two stateless calls, `encode` and `step`.

Knows token ids, never text. Holds parameters only: every state is passed in and returned.

Shape letters: B batch, N live rows, S source length, T target length, F readout width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.decoder import Decoder, Memory
from model.network.dropout import Dropouts
from model.network.encoder import Encoder
from model.network.recurrent import State


class EncoderDecoder(nn.Module):
    """The architecture, as the course draws it: encode, `init_state` from the encoder's outputs, decode."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, src_ids: Tensor, src_lens: Tensor, tgt_in_ids: Tensor) -> Tensor:
        """Logits under teacher forcing.

        Args:
            src_ids: [B, S] int64, ended by `<eos>`, padded.
            src_lens: [B] int64.
            tgt_in_ids: [B, T] int64, `<bos>` first.

        Returns:
            [B, T, V] float.
        """
        logits: Tensor = self.decoder.output(self.readouts(src_ids, src_lens, tgt_in_ids))
        return logits

    def readouts(self, src_ids: Tensor, src_lens: Tensor, tgt_in_ids: Tensor) -> Tensor:
        """As `forward`, one layer before the output: [B, T, F]. A loss needs logits of valid positions only."""
        encoded = self.encoder(src_ids, src_lens)
        state = self.decoder.init_state(encoded)
        readouts: Tensor = self.decoder(tgt_in_ids, state, self.decoder.memory(encoded))
        return readouts


class Seq2Seq(EncoderDecoder):
    """The network of a `ModelConfig`, and the two calls that decoding is made of."""

    def __init__(self, config: ModelConfig, dropouts: Dropouts | None = None) -> None:
        dropouts = dropouts or Dropouts()
        target = _embedding(config.tgt_vocab_size, config.embedding_dim)
        source = target if config.tie_embeddings == "all" else _embedding(config.src_vocab_size, config.embedding_dim)
        super().__init__(Encoder(config, source, dropouts), Decoder(config, target, dropouts))
        self.config = config

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def encode(self, src_ids: Tensor, src_lens: Tensor) -> tuple[Memory, State]:
        """Reads B sentences: src_ids [B, S] int64, src_lens [B] -> their memory, and the state before `<bos>`."""
        encoded = self.encoder(src_ids, src_lens)
        return self.decoder.memory(encoded), self.decoder.init_state(encoded)

    def step(self, ids: Tensor, state: State, memory: Memory | Sequence[Memory]) -> tuple[Tensor, State]:
        """One token for every live row.

        Args:
            ids: [N] int64, the last token of each row (`<bos>` at first).
            state: tensors [N, ...], as `encode` or the last `step` returned them, indexed as the search asks.
            memory: the source sentences of the rows, in their order.

        Returns:
            Log-probabilities of the next token [N, V] float32, and the new state.
        """
        memories = (memory,) if isinstance(memory, Memory) else memory
        readout, state, _ = self.decoder.step(ids, state, memories)
        return torch.log_softmax(self.decoder.output(readout).float(), dim=-1), state

    def extra_repr(self) -> str:
        return f"{self.num_parameters:,} parameters"


def _embedding(vocab_size: int, dim: int) -> nn.Embedding:
    embedding = nn.Embedding(vocab_size, dim)
    nn.init.normal_(embedding.weight, std=dim**-0.5)
    return embedding
