"""A trained network as it decodes: the same function as `Seq2Seq`, made of packed weights. Knows token ids only.

What is different from the modules, and why:

    kernels       in eight bits, on a processor that has the instructions, the products and what follows them are the
                  compiled loops of kernels.cpp; else everything is made of torch's operations (the packed_* modules)
    tables        what an embedding adds to the gates is computed once for the whole vocabulary, so that a step looks
                  it up instead of multiplying: a tenth of the products of an LSTM with input feeding
    one product   the input's and the state's share of an additive cell's gates are one product over both side by side
    no padding    the encoder runs over sentences sorted by length: step t holds those that are longer than t, and no
                  mask is needed (the layout of torch's packed sequences)
    few shapes    the number of rows is filled up to one of a few, for which the products are compiled: `padded_rows`
    graphs        on a GPU a step is one graph over the tables of all sources: step_graphs.py
    rows alone    no row's result depends on its company: see packed.py for the products; attention's are made for at
                  least two sentences, because the kernel for one adds in another order

Everything is float32 but the products inside `PackedLinear`. `Seq2Seq` stays the definition; a test compares the two
for every architecture.

Shape letters: B batch, N live rows, S source length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from model.config import ModelConfig
from model.network.decoder import Memory
from model.network.kernels import LANES, ScatteredMemory, library
from model.network.native_decoder import NativeDecoder, looks_up_anywhere
from model.network.native_encoder import NativeEncoder
from model.network.packed import PACKED
from model.network.packed_decoder import PackedDecoder, StepOutput
from model.network.packed_encoder import PackedEncoder
from model.network.recurrent import State
from model.network.seq2seq import Seq2Seq
from model.network.step_graphs import StepGraphs


def can_be_native(config: ModelConfig) -> bool:
    """Whether the kernels of kernels.cpp can run a network of this shape here."""
    dims = [config.encoder_dim, config.decoder_dim, config.readout_dim, config.memory_dim]
    if config.attention == "additive":
        dims.append(config.attention_dim)
    return library() is not None and not config.layer_norm and all(dim % LANES == 0 for dim in dims)


class InferenceNetwork:
    """Encoder and decoder of a trained `Seq2Seq`, packed.

    Args:
        network: in evaluation mode, float32. Its weights are copied; it is not needed afterwards.
        precision: `fp32`, `bf16` or `int8` (on a CPU).
        is_native: for `int8`, False keeps to torch's own operations.
        is_graphed: steps are made over whole tables, on a GPU as one graph each (step_graphs.py); None for: on a GPU.
    """

    def __init__(
        self,
        network: Seq2Seq,
        precision: str = "fp32",
        *,
        is_native: bool = True,
        is_graphed: bool | None = None,
    ) -> None:
        linear = PACKED[precision]
        self.config = network.config
        self.precision = precision
        self.device = network.decoder.output.weight.device
        is_on_cpu = self.device.type == "cpu"
        self.is_native = is_native and precision == "int8" and is_on_cpu and can_be_native(network.config)
        with torch.inference_mode():
            if self.is_native:
                self._native_encoder = NativeEncoder(network, is_looked_up=looks_up_anywhere(network.decoder))
                self._native_decoder = NativeDecoder(network.decoder, self._native_encoder.bound)
            else:
                self._encoder = PackedEncoder(network, linear)
                self._decoder = PackedDecoder(network.decoder, linear, self._encoder.bound)
        self.is_graphed = not self.is_native and (not is_on_cpu if is_graphed is None else is_graphed)
        self._graphs = StepGraphs(self._decoder.step) if self.is_graphed else None

    @property
    def looks_up_anywhere(self) -> bool:
        """Whether sources may stay where `encode` put them: else a step wants them in one table."""
        return self.is_native and self._native_decoder.looks_up_anywhere

    @torch.inference_mode()
    def encode(self, src_ids: Tensor, src_lens: Sequence[int]) -> tuple[Memory, State]:
        """Reads B sentences: src_ids [B, S] int64, their lengths -> their memory, and the state before `<bos>`."""
        lens = torch.tensor(src_lens, device=self.device)
        if self.is_native:
            encoded = self._native_encoder(src_ids, src_lens)
            return self._native_decoder.memory(encoded, lens), self._native_decoder.init_state(encoded.last_states)
        outputs, last_states = self._encoder(src_ids, src_lens)
        return self._decoder.memory(outputs, last_states, lens), self._decoder.init_state(last_states)

    @torch.inference_mode()
    def step(
        self,
        ids: Tensor,
        state: State,
        memories: Sequence[Memory | ScatteredMemory],
        parents: Tensor | None = None,
    ) -> StepOutput:
        """One token for every live row.

        Args:
            ids: [N] int64 on the CPU, the last token of each row (`<bos>` at first).
            state: tensors [M, ...], as `encode` or the last `step` returned them.
            memories: the source sentences of the rows, in their order; scattered where `looks_up_anywhere`.
            parents: [N] int64 on the CPU, the row of the state that each row goes on from; -1 for a dead row, for which
                anything may come back. None where each goes on from itself. Rows may have one in common, as in a beam:
                the kernels compute its share once.
        """
        if self.is_native:
            return self._native_decoder.step(ids, state, memories, parents)
        tables = cast(Sequence[Memory], memories)
        if self._graphs is not None and all(memory.table is not None for memory in tables):
            return self._graphs(ids, state, tables, parents)
        if parents is not None:
            alive = parents.clamp(min=0).to(self.device)
            state = tuple(part.index_select(0, alive) for part in state)
        return self._decoder.step(ids.to(self.device), state, tables)
