"""The encoder over the kernels of kernels.cpp: each direction of a layer reads a whole batch in one call.

Shape letters: B batch, S source length, P tokens of a batch without padding, D directions, G gates, H hidden,
M memory width, V vocabulary, E embedding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from model.network.kernels import Affine, Input, Work, quantize
from model.network.native_cell import KINDS, GateMaps
from model.network.recurrent import Cell, State
from model.network.seq2seq import Seq2Seq


class _Batch(NamedTuple):
    """Sentences, the longest first; their tokens stand one after the other."""

    lens: np.ndarray  # [B] int64, falling
    starts: np.ndarray  # [B] int64, where each one's tokens begin
    order: np.ndarray  # [B] int64, where it stood in the batch
    positions: Tensor  # [P] int64, where its tokens stand in [B, S] laid out flat


class _Layer:
    """D cells that read the same inputs, one in each direction."""

    def __init__(self, cells: Sequence[Cell], embedding: Tensor | None, bound: float) -> None:
        self._kind = type(cells[0])
        self.num_directions, self.hidden_dim = len(cells), cells[0].hidden_dim
        all_maps = [GateMaps(cell) for cell in cells]
        self._table: Tensor | None = None
        self._input: Affine | None = None
        if embedding is not None:
            self._table = torch.cat([maps.table(embedding) for maps in all_maps], dim=1)
        else:
            weight = torch.cat([maps.weight_ih for maps in all_maps])
            self._input = Affine(
                weight, torch.cat([maps.input_bias for maps in all_maps]), parts=[(weight.shape[1], bound)]
            )
        self._hidden = [maps.pack(maps.weight_ih[:, :0], None, []) for maps in all_maps]
        self._directions = (ctypes.c_void_p * len(cells))(*(affine.address for affine in self._hidden))

    def read(
        self,
        work: Work,
        batch: _Batch,
        ids: Tensor,
        x: Tensor | None,
        *,
        is_reversed: bool,
        floats: Tensor | None,
        halves: Tensor | None,
        places: np.ndarray,
    ) -> tuple[Tensor, State]:
        """Writes down the reading of tokens, ids [P] int64, in the lowest layer, else of x [P, ·] in bytes.

        Args:
            floats, halves: [·, D·H] float32 and bfloat16, take the outputs of each sentence from its place on; None
                where nobody wants them.

        Returns:
            Outputs [P, D·H] in bytes, and the last states, tensors [B, D·H].
        """
        if self._table is not None:
            gates, rows = self._table, ids.data_ptr()
        else:
            assert self._input is not None and x is not None
            gates, rows = work.product(self._input, [Input(x)]), None
        num_sentences, width = len(batch.lens), self.num_directions * self.hidden_dim
        outputs = torch.empty(len(ids), width, dtype=torch.uint8)
        last = tuple(torch.empty(num_sentences, width) for _ in range(self._kind.num_states))
        work.read(
            self._directions,
            KINDS[self._kind],
            self.hidden_dim,
            self.num_directions,
            is_reversed,
            gates.data_ptr(),
            rows,
            batch.lens.ctypes.data,
            batch.starts.ctypes.data,
            places.ctypes.data,
            batch.order.ctypes.data,
            num_sentences,
            None if floats is None else floats.data_ptr(),
            None if halves is None else halves.data_ptr(),
            outputs.data_ptr(),
            last[0].data_ptr(),
            last[1].data_ptr() if len(last) > 1 else None,
            kept=[self, gates, ids, batch, places, floats, halves, outputs, last],
        )
        return outputs, last


class Encoded(NamedTuple):
    """A batch as it was read, or is once `work` is done.

    Attributes:
        work: over all P tokens.
        outputs: [B, S, M] float32 with zeros where there is no token; or bfloat16 with anything there.
        bytes: [P, M], the outputs of all tokens, and `positions` [P] where they stand in `outputs` laid out flat.
        last_states: of each layer, tensors [B, D·H], lowest first.
    """

    work: Work
    outputs: Tensor
    bytes: Tensor
    positions: Tensor
    last_states: list[State]


class NativeEncoder:
    """Reads a batch of sentences without padding.

    Args:
        is_looked_up: attention alone looks at the outputs, wherever they lie: they are bfloat16, and where there is no
            token they are left as they come.
    """

    def __init__(self, network: Seq2Seq, *, is_looked_up: bool) -> None:
        self._is_looked_up = is_looked_up
        encoder = network.encoder
        self._config = network.config
        self._layers: list[_Layer] = []
        self.bound = 1.0  # of the outputs
        for index, layer in enumerate(encoder.layers):
            cells = [cast(Cell, cell) for cell in cast(nn.ModuleList, layer.cells)]
            self._layers.append(_Layer(cells, None if index else encoder.embedding.weight, self.bound))
            self.bound = self.bound + 1.0 if self._config.is_residual_layer(index) else 1.0

    def __call__(self, src_ids: Tensor, lens: Sequence[int]) -> Encoded:
        """Writes down the reading of B sentences: src_ids [B, S] int64 and their lengths."""
        num_rows, width = src_ids.shape
        batch = _batch(lens, width)
        ids = src_ids.flatten()[batch.positions]
        work = Work(len(ids))
        is_top_sum = self._config.is_residual_layer(len(self._layers) - 1)
        outputs: Tensor | None = None
        below: Tensor | None = None  # [P, ·] float32, where a layer above adds its input to its output
        read: Tensor | None = None
        bound = 1.0
        last_states: list[State] = []
        for index, layer in enumerate(self._layers):
            is_top = index + 1 == len(self._layers)
            floats: Tensor | None = None
            halves: Tensor | None = None
            places = batch.starts
            if is_top and not is_top_sum:
                outputs = self._room(num_rows, width, layer.num_directions * layer.hidden_dim)
                floats, halves = (None, outputs) if self._is_looked_up else (outputs, None)
                places = batch.order * width
            elif self._config.residual:
                floats = torch.empty(len(ids), layer.num_directions * layer.hidden_dim)
            read, last = layer.read(
                work,
                batch,
                ids,
                read,
                is_reversed=self._config.reverse_source,
                floats=floats,
                halves=halves,
                places=places,
            )
            last_states.append(last)
            bound = bound + 1.0 if self._config.is_residual_layer(index) else 1.0
            if self._config.is_residual_layer(index):
                assert floats is not None and below is not None
                work.run()
                below = floats.add_(below)
                read = quantize(below, bound)
            elif not is_top:
                below = floats
        assert read is not None
        if outputs is None:
            assert below is not None
            work.run()
            outputs = self._room(num_rows, width, below.shape[1])
            outputs.view(num_rows * width, -1).index_copy_(0, batch.positions, below.to(outputs.dtype))
        return Encoded(work, outputs, read, batch.positions, last_states)

    def _room(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16) if self._is_looked_up else torch.zeros(shape)


def _batch(lens: Sequence[int], width: int) -> _Batch:
    given = np.asarray(lens, dtype=np.int64)
    order = np.argsort(-given, kind="stable")
    falling = given[order]
    starts = np.cumsum(falling) - falling
    positions = np.repeat(order * width - starts, falling) + np.arange(int(falling.sum()))
    return _Batch(falling, starts, order, torch.from_numpy(positions))
