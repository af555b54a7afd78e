"""The compiled kernels: the same numbers as plain arithmetic, for any number of rows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.network.decoder import Memory
from model.network.kernels import Affine, Input, Work, best_few, dequantize, library, quantize
from model.network.native_cell import TANH_FACTOR, NativeCell
from model.network.native_decoder import scattered_memory
from model.network.recurrent import CELLS

native = pytest.mark.skipif(library() is None, reason="needs the kernels, and a processor with AVX-512 VNNI")
NUM_ROWS = 61
SHAPES = [(64, 192), (1024, 512), (256, 6016), (16, 48)]  # inputs and outputs, whole panels and not


def done(work: Work, result: object) -> Any:
    """What an operation returned, once it is done."""
    work.run()
    return result


def product(affine: Affine, *x: Tensor, **added: Tensor) -> Tensor:
    work = Work(len(x[0]))
    return done(work, work.product(affine, [Input(part) for part in x], **added))  # type: ignore[no-any-return]


def test_kernels_are_there_where_processor_and_compiler_are() -> None:
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    if "avx512_vnni" in flags and "avx512bw" in flags and shutil.which("c++"):
        assert library() is not None


@native
@pytest.mark.parametrize("bound", [1.0, 3.0])
def test_bytes_stand_for_what_was_put_in(bound: float) -> None:
    x = (torch.rand(7, 48) * 2 - 1) * bound
    torch.testing.assert_close(dequantize(quantize(x, bound), bound), x, atol=bound / 250, rtol=0)
    beyond = torch.tensor([[9.0, -9.0] * 8])
    assert quantize(beyond)[0, :2].tolist() == [255, 0]


@native
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_near_the_exact_ones_in_any_company(shape: tuple[int, int]) -> None:
    num_inputs, num_outputs = shape
    x, weight = torch.rand(NUM_ROWS, num_inputs) * 2 - 1, torch.randn(num_outputs, num_inputs) / num_inputs**0.5
    bias, added = torch.randn(num_outputs), torch.randn(NUM_ROWS, num_outputs)
    affine, inputs = Affine(weight, bias), quantize(x)
    whole = product(affine, inputs, added=added)
    torch.testing.assert_close(whole, x @ weight.t() + bias + added, atol=0.03, rtol=0.02)
    work = Work(NUM_ROWS)
    readout = done(work, work.tanh(affine, [Input(inputs)], added=added))
    torch.testing.assert_close(dequantize(readout), torch.tanh(whole / TANH_FACTOR), atol=0.005, rtol=0)
    for num_rows in range(1, 14):
        rows = slice(3 * num_rows, 4 * num_rows)
        assert torch.equal(product(affine, inputs[rows], added=added[rows]), whole[rows])


@native
def test_inputs_side_by_side_have_bounds_of_their_own() -> None:
    x, y = torch.rand(5, 16) * 2 - 1, (torch.rand(5, 32) * 2 - 1) * 4
    weight = torch.randn(64, 48) / 7
    affine = Affine(weight, None, parts=[(16, 1.0), (32, 4.0)])
    torch.testing.assert_close(
        product(affine, quantize(x), quantize(y, 4.0)), torch.cat((x, y), dim=1) @ weight.t(), atol=0.08, rtol=0
    )


@native
def test_added_rows_are_those_of_the_table() -> None:
    affine, x, table = Affine(torch.randn(64, 16), None), quantize(torch.rand(3, 16)), torch.randn(9, 64)
    ids = torch.tensor([8, 0, 8])
    assert torch.equal(product(affine, x, added=table, ids=ids), product(affine, x) + table[ids])


@native
@pytest.mark.parametrize("num_tokens", [64, 1024])
def test_logits_come_with_norms_and_peaks(num_tokens: int) -> None:
    bias = torch.randn(num_tokens) * 5
    bias[-3:] = float("-inf")
    work, affine = Work(7), Affine(torch.randn(num_tokens, 32), bias)
    logits, log_norms, peaks = done(work, work.logits(affine, [Input(quantize(torch.rand(7, 32)))]))
    torch.testing.assert_close(log_norms, logits.logsumexp(dim=1))
    assert torch.equal(peaks, logits.view(7, -1, 64).amax(dim=2))
    assert (logits[:, -3:] == float("-inf")).all()


@native
@pytest.mark.parametrize("width", [7, 16, 40, 300])
@pytest.mark.parametrize("rows_each", [1, 2])
def test_attention_is_softmax_and_weighted_sum(width: int, rows_each: int) -> None:
    num_entries, first, lens = 3, 4, torch.tensor([1, width, 5])
    num_rows = first + num_entries * rows_each
    keys, values = torch.randn(num_entries, width, 48), torch.rand(num_entries, width, 80) * 2 - 1
    keys, values = keys.bfloat16(), values.bfloat16()
    queries = torch.randn(num_rows, 48)
    mask = torch.arange(width) < lens[:, None]
    contexts = torch.empty(num_rows, 80, dtype=torch.uint8)
    work = Work(num_rows)
    memory = scattered_memory(Memory(keys, values, mask, None, rows_each))
    weights = done(work, work.attend(queries, memory, contexts, first, 1.0))
    scores: Tensor = queries[first:].view(num_entries, rows_each, -1) @ keys.float().transpose(1, 2)
    expected = torch.where(mask[:, None], scores, float("-inf")).softmax(dim=-1)
    torch.testing.assert_close(weights, expected.flatten(0, 1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        dequantize(contexts[first:]), (expected @ values.float()).flatten(0, 1), atol=0.005, rtol=0
    )


@native
@pytest.mark.parametrize("kind", sorted(CELLS))
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_cells_stay_finite_and_right_however_large_their_gates(kind: str, size: float) -> None:
    cell = CELLS[kind](32, 64).eval()
    torch.nn.init.uniform_(cell.bias_ih, -size, size)
    x, h, c = torch.rand(9, 32) * 2 - 1, torch.rand(9, 64) * 2 - 1, torch.randn(9, 64) * size
    exact = (h, c)[: cell.num_states]
    with torch.no_grad():
        expected = cell.step(cell.input_gates(x), exact)
        kept = {"rnn": (), "gru": (h,), "lstm": (c,)}[kind]
        work = Work(9)
        (new_h, *new_kept), floats = NativeCell(cell, [(32, 1.0)]).step(
            work, [Input(quantize(x))], (quantize(h), *kept), 9, None, None, wants_floats=True
        )
        work.run()
    assert floats is not None
    torch.testing.assert_close(floats, expected[0], atol=0.02, rtol=0)
    torch.testing.assert_close(dequantize(new_h), floats, atol=0.005, rtol=0)
    for part, expected_part in zip(new_kept, expected[-1:], strict=False):
        torch.testing.assert_close(part, expected_part, atol=0.03, rtol=0.005)


PARENTS = {
    "dead rows": [3, -1, 0, -1, 5, 1, -1],
    "siblings": [0, 0, 0, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2],
    "both": [7, 7, -1, 7, 0, 0, -1, -1, 3, 3, 3],
    "one": [-1, 6],
    "none": [-1, -1],
}


@native
@pytest.mark.parametrize("kind", sorted(CELLS))
@pytest.mark.parametrize("parents", PARENTS.values(), ids=PARENTS)
@pytest.mark.parametrize("is_fed", [False, True], ids=["own input", "the parent's"])
def test_rows_go_on_from_their_parents_bit_for_bit(kind: str, parents: list[int], is_fed: bool) -> None:
    """What siblings have in common is computed once, and dead rows are not: nobody can tell."""
    num_states, num_rows = 8, len(parents)
    cell = NativeCell(CELLS[kind](32, 64).eval(), [(32, 1.0)])
    states = torch.rand(num_states, 64) * 2 - 1
    state = (quantize(states), *{"rnn": (), "gru": (states,), "lstm": (torch.randn(num_states, 64),)}[kind])
    x = quantize(torch.rand(num_states if is_fed else num_rows, 32) * 2 - 1)
    added = torch.randn(num_rows, 64 * CELLS[kind].num_gates)
    followed = torch.tensor(parents)
    work = Work(num_rows, followed, num_states)
    after, _ = cell.step(work, [Input(x, is_fed)], state, num_rows, added, None, wants_floats=False)
    work.run()
    for n, parent in enumerate(parents):
        if parent < 0:
            continue
        own = x[parent : parent + 1] if is_fed else x[n : n + 1]
        alone = Work(1)
        before = tuple(part[parent : parent + 1] for part in state)
        expected, _ = cell.step(alone, [Input(own)], before, 1, added[n : n + 1], None, wants_floats=False)
        alone.run()
        assert all(torch.equal(part[n], part_alone[0]) for part, part_alone in zip(after, expected, strict=True))


@native
@pytest.mark.parametrize("k", [1, 3, 10, 200])
@pytest.mark.parametrize("has_norms", [False, True])
def test_the_best_few_are_those_of_a_stable_sort(k: int, has_norms: bool) -> None:
    num_segments, rows_each, num_tokens, num_forbidden = 5, 4, 256, 3
    # Few different values: most are equal to many others.
    logits = torch.randint(-3, 3, (num_segments * rows_each, num_tokens)).float()
    logits[:, -7:] = float("-inf")
    logits[:, :num_forbidden] = 9.0
    norms = torch.randn(num_segments * rows_each) if has_norms else None
    totals = torch.randint(-2, 2, (num_segments, rows_each)).float()
    totals[1, 2] = totals[3, :3] = float("-inf")
    logits.view(num_segments, rows_each, num_tokens)[1, 2] = float("nan")  # a dead row may hold anything
    peaks = logits.view(num_segments * rows_each, -1, 64).amax(dim=2)
    values, rows, tokens = best_few(logits, peaks, norms, num_forbidden, totals, k)
    sums = (logits if norms is None else logits - norms[:, None]).view(num_segments, rows_each, num_tokens).clone()
    sums += totals[:, :, None]
    sums[:, :, :num_forbidden] = float("-inf")
    sums[totals == float("-inf")] = float("-inf")
    expected = sums.flatten(1).sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, expected.values[:, :k])
    found = values > float("-inf")
    assert torch.equal((rows * num_tokens + tokens)[found], expected.indices[:, :k][found])
