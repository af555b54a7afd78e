"""A trained network as it decodes: the same function as `Seq2Seq`, made of packed weights. Knows token ids only.

What is different from the modules, and why:

    tables        what an embedding adds to the gates is computed once for the whole vocabulary, so that a step looks
                  it up instead of multiplying: a tenth of the products of an LSTM with input feeding
    one product   the input's and the state's share of an additive cell's gates are one product over both side by side
    no padding    the encoder runs over sentences sorted by length: step t holds those that are longer than t, and no
                  mask is needed (the layout of torch's packed sequences)
    rows alone    no row's result depends on its company: see packed.py for the products; attention's are made for at
                  least two sentences, because the kernel for one adds in another order

Everything is float32 but the products inside `PackedLinear`. `Seq2Seq` stays the definition; a test compares the two
for every architecture.

Shape letters: B batch, N live rows, R entries of a memory, K rows an entry, S source length, P source tokens of a
batch without padding, D directions, G gates, H hidden, M memory width, A key width, C context, F readout, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from model.network.decoder import Decoder, Memory
from model.network.packed import PACKED, Fp32Linear, PackedLinear
from model.network.recurrent import CELLS, Cell, State
from model.network.seq2seq import Seq2Seq

VOCAB_MULTIPLE = 64  # log-probabilities are padded to it with -inf, so that a search can look at them in blocks


class StepOutput(NamedTuple):
    """What one step gives.

    Attributes:
        log_probs: [N, V'] float32, V padded to a multiple of `VOCAB_MULTIPLE`.
        state: after the step, tensors [N, ...].
        attention: for each memory its rows' weights [R·K, S]; empty without attention.
    """

    log_probs: Tensor
    state: State
    attention: tuple[Tensor, ...]


class PackedCell:
    """A recurrent cell over an embedding table, bounded inputs, or both.

    Args:
        cell: whose weights to pack.
        linear: the class of the packed products.
        embedding: [V, E], where the first E columns of the input are embedded tokens.
        input_bound: no other input is larger.
        has_constant: part of the input is the same at every step of a sentence; its share comes from outside.
        is_unrolled: the inputs of all steps are known before the first, and their share is computed at once.
    """

    def __init__(
        self,
        cell: Cell,
        linear: type[PackedLinear],
        *,
        embedding: Tensor | None = None,
        input_bound: float = 1.0,
        has_constant: bool = False,
        is_unrolled: bool = False,
    ) -> None:
        self.kind = type(cell)
        self._norm_ih, self._norm_hh = cell.norm_ih, cell.norm_hh
        is_sum = self.kind.is_additive and self._norm_hh is None
        bias = cell.bias_ih + cell.bias_hh if is_sum else cell.bias_ih
        embedding_dim = 0 if embedding is None else embedding.shape[1]
        self.table: Tensor | None = None
        self.constant: Fp32Linear | None = None
        dense = cell.weight_ih[:, embedding_dim:]
        if embedding is not None:
            self.table = Fp32Linear(cell.weight_ih[:, :embedding_dim], bias)(embedding.float())
        if has_constant:
            self.constant = Fp32Linear(dense, None)
            dense = dense[:, :0]
        input_bias = bias if embedding is None else None
        self._is_sum = is_sum
        self._is_fused = is_sum and dense.shape[1] > 0 and not is_unrolled
        self._input: PackedLinear | None = None
        if self._is_fused:
            weight = torch.cat((dense, cell.weight_hh), dim=1)
            self._hidden = linear(weight, input_bias, bound=max(1.0, input_bound))
            return
        if dense.shape[1]:
            self._input = linear(dense, input_bias, bound=input_bound)
        self._hidden = linear(cell.weight_hh, None if is_sum else cell.bias_hh)

    def inputs(self, ids: Tensor | None, x: Tensor | None) -> Tensor:
        """The share of the gates [P, G·H] that inputs have, known for all steps: tokens [P] or vectors x [P, I]."""
        if x is None:
            assert self.table is not None and ids is not None
            return self.table.index_select(0, ids)
        assert self._input is not None
        return self._input(x)

    def step(self, given: Tensor | None, x: Sequence[Tensor], state: State) -> State:
        """One step.

        Args:
            given: [N, G·H], shares of the gates that are there already; may be overwritten. None where there is none.
            x: the other inputs, tensors [N, ·] that stand side by side.
            state: tensors [N, H].
        """
        if self._is_fused:
            return self.kind.activate_sum_(self._hidden(torch.cat((*x, state[0]), dim=1), given), state)
        gates = given if not x else cast(PackedLinear, self._input)(_beside(x), given)
        assert gates is not None
        if self._is_sum:
            return self.kind.activate_sum_(self._hidden(state[0], gates), state)
        hidden_gates = self._hidden(state[0])
        if self._norm_ih is not None and self._norm_hh is not None:
            gates, hidden_gates = self._norm_ih(gates), self._norm_hh(hidden_gates)
        return self.kind.forward_(gates, hidden_gates, state)


class PackedEncoder:
    """Reads a batch of sentences without padding."""

    def __init__(self, network: Seq2Seq, linear: type[PackedLinear]) -> None:
        encoder = network.encoder
        self._config = network.config
        self._layers: list[list[PackedCell]] = []
        self.bound = 1.0  # of the outputs
        for index, layer in enumerate(encoder.layers):
            options = {"embedding": encoder.embedding.weight} if index == 0 else {"input_bound": self.bound}
            cells = cast(nn.ModuleList, layer.cells)
            self._layers.append([PackedCell(cast(Cell, cell), linear, is_unrolled=True, **options) for cell in cells])
            self.bound = self.bound + 1.0 if self._is_residual(index) else 1.0

    def _is_residual(self, index: int) -> bool:
        directions = self._config.num_directions
        return self._config.residual and index > 0 and directions[index] == directions[index - 1]

    def __call__(self, src_ids: Tensor, lens: Sequence[int]) -> tuple[Tensor, list[State], Tensor]:
        """Reads B sentences.

        Args:
            src_ids: [B, S] int64.
            lens: of each.

        Returns:
            Outputs [P, M]; each layer's last states, tensors [B, D·H], lowest first; and where each output belongs,
            [P] int64 positions in [B, S] laid out flat.
        """
        device, width = src_ids.device, src_ids.shape[1]
        order = sorted(range(len(lens)), key=lambda row: -lens[row])
        num_at = [sum(length > t for length in lens) for t in range(lens[order[0]])]  # rows still read at step t
        read = [(order[i], t) for t, n in enumerate(num_at) for i in range(n)]
        if self._config.reverse_source:  # read backwards, but kept where they stand
            read = [(row, lens[row] - 1 - t) for row, t in read]
        positions = torch.tensor([row * width + t for row, t in read], device=device)
        ids = src_ids.flatten()[positions]
        x: Tensor | None = None
        last_states: list[State] = []
        for index, cells in enumerate(self._layers):
            outputs, states = zip(*(_unroll(c, c.inputs(ids, x), num_at, d) for d, c in enumerate(cells)), strict=True)
            y = _beside(outputs)
            last_states.append(tuple(_beside(parts) for parts in zip(*states, strict=True)))
            x = y + x if x is not None and self._is_residual(index) else y
        back = torch.tensor(order, device=device).argsort()
        assert x is not None
        return x, [tuple(part[back] for part in state) for state in last_states], positions


def _unroll(cell: PackedCell, gates: Tensor, num_at: Sequence[int], direction: int) -> tuple[Tensor, State]:
    """gates [P, G·H], step by step -> outputs [P, H] and last states [B, H], sentences sorted by falling length.

    Forwards the first n_t rows go on from step to step, and those that end keep their state. Backwards (direction 1)
    it starts at the end of the longest, and the shorter ones join with a state of zeros.
    """
    parts = gates.split(list(num_at))
    outputs: list[Tensor] = [gates] * len(num_at)
    hidden_dim = gates.shape[1] // cell.kind.num_gates
    if direction == 1:
        state: State = tuple(gates.new_zeros(num_at[-1], hidden_dim) for _ in range(cell.kind.num_states))
        for t in range(len(num_at) - 1, -1, -1):
            num_new = num_at[t] - state[0].shape[0]
            if num_new:
                state = tuple(torch.cat((s, s.new_zeros(num_new, hidden_dim))) for s in state)
            state = cell.step(parts[t], (), state)
            outputs[t] = state[0]
        return torch.cat(outputs), state
    state = tuple(gates.new_zeros(num_at[0], hidden_dim) for _ in range(cell.kind.num_states))
    ended: list[State] = []
    for t, num_rows in enumerate(num_at):
        if num_rows < state[0].shape[0]:
            ended.append(tuple(s[num_rows:] for s in state))
            state = tuple(s[:num_rows] for s in state)
        state = cell.step(parts[t], (), state)
        outputs[t] = state[0]
    ended.append(state)
    last = tuple(torch.cat(pieces[::-1]) for pieces in zip(*ended, strict=True))
    return torch.cat(outputs), last


class PackedDecoder:
    """One token for every live row."""

    def __init__(self, decoder: Decoder, linear: type[PackedLinear], memory_bound: float) -> None:
        config = decoder.config
        self._config = config
        self._attention = decoder.attention
        self._num_states = CELLS[config.cell].num_states
        self._keys: PackedLinear | None = None
        self._queries: PackedLinear | None = None
        if self._attention is not None:
            project_memory = getattr(self._attention, "project_memory", getattr(self._attention, "project", None))
            if project_memory is not None:
                self._keys = linear(project_memory.weight, project_memory.bias, bound=memory_bound)
        embedding = decoder.embedding.weight
        self._cells: list[PackedCell] = []
        bound = 1.0
        for layer, cell in enumerate(decoder.cells):
            first = layer == 0
            self._cells.append(
                PackedCell(
                    cast(Cell, cell),
                    linear,
                    embedding=embedding if first else None,
                    input_bound=max(1.0, memory_bound) if first else bound,
                    has_constant=first and config.context_input,
                )
            )
            bound = bound + 1.0 if config.residual and layer else 1.0
        project_query = getattr(self._attention, "project_query", None)
        if project_query is not None:
            query_bound = bound if config.attention_query == "current" else 1.0
            self._queries = linear(project_query.weight, project_query.bias, bound=query_bound)
        self._pack_readout(decoder, linear, max(bound, memory_bound))
        self._bridges = [self._pack_bridge(bridge) for bridge in decoder.bridges]
        self._source_layers = [decoder.source_layer(layer) for layer in range(config.decoder_layers)]

    def _pack_readout(self, decoder: Decoder, linear: type[PackedLinear], bound: float) -> None:
        config = self._config
        weight, bias = decoder.readout.weight, decoder.readout.bias
        dims = [config.decoder_dim, decoder.context_dim, weight.shape[1] - config.decoder_dim - decoder.context_dim]
        of_state, of_context, of_embedding = weight.split(dims, dim=1)
        self._readout_table: Tensor | None = None
        self._readout_constant: Fp32Linear | None = None
        if dims[2]:
            self._readout_table = Fp32Linear(of_embedding, None)(decoder.embedding.weight.float())
        if config.context_input:
            self._readout_constant = Fp32Linear(of_context, None)
            self._readout = linear(of_state, bias, bound=bound)
        else:
            self._readout = linear(torch.cat((of_state, of_context), dim=1), bias, bound=bound)
        num_missing = -config.tgt_vocab_size % VOCAB_MULTIPLE
        out_weight = torch.cat(
            (decoder.output.weight, decoder.output.weight.new_zeros(num_missing, config.readout_dim))
        )
        out_bias = torch.cat((decoder.output.bias, decoder.output.bias.new_full((num_missing,), float("-inf"))))
        self._output = linear(out_weight, out_bias)

    @staticmethod
    def _pack_bridge(bridge: nn.Module) -> Fp32Linear | None:
        if isinstance(bridge, nn.Identity):
            return None
        affine = cast(nn.Linear, cast(nn.Sequential, bridge)[0])
        return Fp32Linear(affine.weight, affine.bias)  # once a request, and a cell's c has no bound

    def memory(
        self, outputs: Tensor, last_states: Sequence[State], positions: Tensor, lens: Tensor, width: int
    ) -> Memory:
        """outputs [P, M] of positions [P] in [B, S] -> the memory of B sentences, padded with zeros to S = width."""
        num_rows = lens.shape[0]
        mask = torch.arange(width, device=lens.device) < lens[:, None]  # [B, S]
        context: Tensor | None = None
        if self._config.context_input:
            last = last_states[-1][0]
            assert self._cells[0].constant is not None and self._readout_constant is not None
            context = torch.cat((self._cells[0].constant(last), self._readout_constant(last)), dim=1)  # [B, G·H + F]
        if self._attention is None:
            return Memory(None, None, mask, context)

        def spread(x: Tensor) -> Tensor:
            padded = x.new_zeros(num_rows * width, x.shape[1])
            return padded.index_copy_(0, positions, x).view(num_rows, width, -1)

        values = spread(outputs)
        return Memory(values if self._keys is None else spread(self._keys(outputs)), values, mask, context)

    def init_state(self, last_states: Sequence[State]) -> State:
        """The state before `<bos>`: tensors [B, H] (and [B, F])."""
        state: list[Tensor] = []
        for layer, source in enumerate(self._source_layers):
            bridges = self._bridges[layer * self._num_states : (layer + 1) * self._num_states]
            for part, bridge in zip(last_states[source], bridges, strict=True):
                state.append(part if bridge is None else torch.tanh(bridge(part)))
        if self._config.input_feeding:
            state.append(state[0].new_zeros(state[0].shape[0], self._config.readout_dim))
        return tuple(state)

    def step(self, ids: Tensor, state: State, memories: Sequence[Memory]) -> StepOutput:
        """ids [N] int64, state tensors [N, ...] -> StepOutput."""
        config = self._config
        attention: tuple[Tensor, ...] = ()
        given = cast(Tensor, self._cells[0].table).index_select(0, ids)  # [N, G·H]
        fixed: Tensor | None = None
        context: Tensor | None = None
        dense: list[Tensor] = []
        if config.input_feeding:
            dense.append(state[-1])
        elif config.attention_query == "previous":
            context, attention = self._attend(state[(config.decoder_layers - 1) * self._num_states], memories)
            dense.append(context)
        elif config.context_input:
            fixed = torch.cat([cast(Tensor, m.context).repeat_interleave(m.rows_each, dim=0) for m in memories])
            given += fixed[:, : given.shape[1]]
        x = state[0]
        new_state: list[Tensor] = []
        for layer, cell in enumerate(self._cells):
            before = state[layer * self._num_states : (layer + 1) * self._num_states]
            after = cell.step(given, dense, before) if layer == 0 else cell.step(None, (x,), before)
            new_state.extend(after)
            x = after[0] + x if config.residual and layer else after[0]
        if context is None and self._attention is not None:
            context, attention = self._attend(x, memories)
        added = None if self._readout_table is None else self._readout_table.index_select(0, ids)
        if fixed is not None:
            rest = fixed[:, given.shape[1] :]
            added = rest.contiguous() if added is None else added.add_(rest)
        readout = self._readout(x if context is None else torch.cat((x, context), dim=1), added).tanh_()
        if config.input_feeding:
            new_state.append(readout)
        return StepOutput(torch.log_softmax(self._output(readout), dim=1), tuple(new_state), attention)

    def _attend(self, state: Tensor, memories: Sequence[Memory]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """state [N, H] -> context [N, M] and each memory's weights [R·K, S]."""
        assert self._attention is not None
        queries = state if self._queries is None else self._queries(state)
        contexts: list[Tensor] = []
        weights: list[Tensor] = []
        for part, memory in zip(queries.split([m.num_rows for m in memories]), memories, strict=True):
            assert memory.keys is not None and memory.values is not None
            num_entries, shape = memory.num_entries, (memory.num_entries, memory.rows_each, -1)
            looked_up = (part.view(shape), memory.keys, memory.values, memory.mask)
            if num_entries == 1:
                looked_up = cast(
                    tuple[Tensor, Tensor, Tensor, Tensor], tuple(t.expand(2, *t.shape[1:]) for t in looked_up)
                )
            context, weight = self._attention.look_up(*looked_up)
            contexts.append(context[:num_entries].flatten(0, 1))
            weights.append(weight[:num_entries].flatten(0, 1))
        return (contexts[0] if len(contexts) == 1 else torch.cat(contexts)), tuple(weights)


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
        outputs, last_states, positions = self._encoder(src_ids, src_lens)
        lens = torch.tensor(src_lens, device=self.device)
        memory = self._decoder.memory(outputs, last_states, positions, lens, src_ids.shape[1])
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


def _beside(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=1)
