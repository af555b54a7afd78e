"""A trained network as it decodes: the same function as `Seq2Seq`, made of packed weights. Knows token ids only.

What is different from the modules, and why:

    tables        what an embedding adds to the gates is computed once for the whole vocabulary, so that a step looks
                  it up instead of multiplying: a tenth of the products of an LSTM with input feeding
    one product   the input's and the state's share of an additive cell's gates are one product over both side by side
    no padding    the encoder runs over sentences sorted by length: step t holds those that are longer than t, and no
                  mask is needed (the layout of torch's packed sequences)
    few shapes    the number of rows is filled up to one of a few, for which the products are compiled: `padded_rows`
    rows alone    no row's result depends on its company: see packed.py for the products; attention's are made for at
                  least two sentences, because the kernel for one adds in another order

Everything is float32 but the products inside `PackedLinear`. `Seq2Seq` stays the definition; a test compares the two
for every architecture.

Shape letters: B batch, N live rows, S source length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.network.decoder import Memory
from model.network.packed import PACKED
from model.network.packed_decoder import PackedDecoder, StepOutput
from model.network.packed_encoder import PackedEncoder
from model.network.recurrent import State
from model.network.seq2seq import Seq2Seq


class InferenceNetwork:
    """Encoder and decoder of a trained `Seq2Seq`, packed.

    Args:
        network: in evaluation mode, float32. Its weights are copied; it is not needed afterwards.
        precision: `fp32`, `bf16` or `int8` (on a CPU).
    """

    def __init__(self, network: Seq2Seq, precision: str = "fp32") -> None:
        linear = PACKED[precision]
        self.config = network.config
        self.precision = precision
        self.device = network.decoder.output.weight.device
        with torch.inference_mode():
            self._encoder = PackedEncoder(network, linear)
            self._decoder = PackedDecoder(network.decoder, linear, self._encoder.bound)

    @torch.inference_mode()
    def encode(self, src_ids: Tensor, src_lens: Sequence[int]) -> tuple[Memory, State]:
        """Reads B sentences: src_ids [B, S] int64, their lengths -> their memory, and the state before `<bos>`."""
        outputs, last_states = self._encoder(src_ids, src_lens)
        memory = self._decoder.memory(outputs, last_states, torch.tensor(src_lens, device=self.device))
        return memory, self._decoder.init_state(last_states)

    @torch.inference_mode()
    def step(self, ids: Tensor, state: State, memories: Sequence[Memory]) -> StepOutput:
        """One token for every live row.

        Args:
            ids: [N] int64, the last token of each row (`<bos>` at first).
            state: tensors [N, ...], as `encode` or the last `step` returned them, indexed as the search asks.
            memories: the source sentences of the rows, in their order.
        """
        return self._decoder.step(ids, state, memories)
