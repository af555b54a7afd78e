"""A decoder's step as a graph of the GPU: recorded once for a table of rows, then launched as a whole.

A step is some sixty small kernels; to launch them one by one takes a CPU longer than a GPU needs for their work. A CUDA
graph fixes all shapes and addresses, so a step is over a *table*: for each memory as many entries as its own table has
room for, whether they are live or not, and rows for all of them. Live rows stand first in each memory's part; what the
others come to is nobody's business.

Ids, parents and states are copied into the graph's own tensors before it is launched. What it leaves behind is
overwritten by the next launch, which reads the state before.

On a CPU the same steps over the same tables are made one operation after the other: that is how this is tested.

Shape letters: N live rows, M rows of the state before, T rows of the table.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.network.decoder import Memory
from model.network.packed_decoder import StepOutput
from model.network.recurrent import State
from model.network.token_scores import TokenScores

_MAX_GRAPHS = 32  # tables that are remembered; each has its outputs in the GPU's memory
_FIRST_STATES = 64
_WARM_UPS = 2  # before it is recorded: libraries choose their kernels then

_Step = Callable[[Tensor, State, Sequence[Memory]], StepOutput]


class _Graph:
    """A step over one table, and the tensors that it reads.

    Args:
        step: ids [T], state [T, ...] and memories -> StepOutput.
        tables: with all their entries.
        num_states: room for M.
        like: a state, for its shapes.
    """

    def __init__(self, step: _Step, tables: Sequence[Memory], num_states: int, like: State) -> None:
        device = like[0].device
        num_rows = sum(table.num_rows for table in tables)
        self._tables = tables  # the graph has their addresses
        self._ids = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._parents = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._state = tuple(part.new_zeros(num_states, *part.shape[1:]) for part in like)
        self._launch = _recorded(lambda: step(self._ids, self._followed(), tables), device)

    def _followed(self) -> State:
        return tuple(part.index_select(0, self._parents) for part in self._state)

    def __call__(self, ids: Tensor, parents: Tensor, state: State) -> StepOutput:
        """ids and parents [T] on the CPU, state [M, ...]."""
        self._ids.copy_(ids, non_blocking=True)
        self._parents.copy_(parents, non_blocking=True)
        for kept, part in zip(self._state, state, strict=True):
            kept[: part.shape[0]].copy_(part)
        return self._launch()


class StepGraphs:
    """Steps over tables, by the tables that they are over.

    Args:
        step: of the decoder.
    """

    def __init__(self, step: _Step) -> None:
        self._step = step
        self._graphs: OrderedDict[tuple[object, ...], _Graph] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(self, ids: Tensor, state: State, memories: Sequence[Memory], parents: Tensor | None) -> StepOutput:
        """As `InferenceNetwork.step`: ids and parents on the CPU, every memory with its table."""
        tables = [memory.table for memory in memories if memory.table is not None]
        assert len(tables) == len(memories), "a graph is over tables"
        parents = torch.arange(len(ids)) if parents is None else parents.clamp(min=0)
        all_ids, all_parents = (torch.zeros(sum(t.num_rows for t in tables), dtype=torch.int64) for _ in range(2))
        parts: list[slice] = []  # of the table's rows, where the live ones of each memory stand
        start, first = 0, 0
        for memory, table in zip(memories, tables, strict=True):
            parts.append(slice(start, start + memory.num_rows))
            all_ids[parts[-1]] = ids[first : first + memory.num_rows]
            all_parents[parts[-1]] = parents[first : first + memory.num_rows]
            start, first = start + table.num_rows, first + memory.num_rows
        scores, state, attention = self._graph(tables, state)(all_ids, all_parents, state)
        weights = tuple(weight[: memory.num_rows] for weight, memory in zip(attention, memories, strict=False))
        log_probs = _pieces(scores.log_probs(), parts)
        return StepOutput(TokenScores(log_probs), tuple(_pieces(part, parts) for part in state), weights)

    def _graph(self, tables: Sequence[Memory], state: State) -> _Graph:
        num_states = _FIRST_STATES
        while num_states < state[0].shape[0]:
            num_states *= 2
        name = (num_states, *(part for table in tables for part in (table.mask.data_ptr(), *table.mask.shape)))
        graph = self._graphs.pop(name, None) or _Graph(self._step, tables, num_states, state)
        self._graphs[name] = graph
        if len(self._graphs) > _MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return graph


def _pieces(whole: Tensor, parts: Sequence[slice]) -> Tensor:
    return whole[parts[0]] if len(parts) == 1 else torch.cat([whole[part] for part in parts])


def _recorded(run: Callable[[], StepOutput], device: torch.device) -> Callable[[], StepOutput]:
    """What does `run` again: on a GPU as one graph, whose output is always in the same place."""
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another model's thread may be at work
        output = run()

    def launch() -> StepOutput:
        graph.replay()
        return output

    return launch
