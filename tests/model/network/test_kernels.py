"""The compiled kernels: the same numbers as plain arithmetic, for any number of rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.network.kernels import Affine, attend, dequantize, library, quantize
from model.network.native_cell import TANH_FACTOR, NativeCell
from model.network.recurrent import CELLS

native = pytest.mark.skipif(library() is None, reason="needs the kernels, and a processor with AVX-512 VNNI")
NUM_ROWS = 61
SHAPES = [(64, 192), (1024, 512), (256, 6016), (16, 48)]  # inputs and outputs, whole panels and not


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
    whole = affine.product([inputs], added=added)
    torch.testing.assert_close(whole, x @ weight.t() + bias + added, atol=0.03, rtol=0.02)
    torch.testing.assert_close(
        dequantize(affine.tanh([inputs], added=added)), torch.tanh(whole / TANH_FACTOR), atol=0.005, rtol=0
    )
    for num_rows in range(1, 14):
        rows = slice(3 * num_rows, 4 * num_rows)
        assert torch.equal(affine.product([inputs[rows]], added=added[rows]), whole[rows])


@native
def test_inputs_side_by_side_have_bounds_of_their_own() -> None:
    x, y = torch.rand(5, 16) * 2 - 1, (torch.rand(5, 32) * 2 - 1) * 4
    weight = torch.randn(64, 48) / 7
    affine = Affine(weight, None, parts=[(16, 1.0), (32, 4.0)])
    torch.testing.assert_close(
        affine.product([quantize(x), quantize(y, 4.0)]), torch.cat((x, y), dim=1) @ weight.t(), atol=0.08, rtol=0
    )


@native
def test_added_rows_are_those_of_the_table() -> None:
    affine, x, table = Affine(torch.randn(64, 16), None), quantize(torch.rand(3, 16)), torch.randn(9, 64)
    ids = torch.tensor([8, 0, 8])
    assert torch.equal(affine.product([x], added=table, ids=ids), affine.product([x]) + table[ids])


@native
@pytest.mark.parametrize("num_tokens", [64, 1024])
def test_logits_come_with_norms_and_peaks(num_tokens: int) -> None:
    bias = torch.randn(num_tokens) * 5
    bias[-3:] = float("-inf")
    logits, log_norms, peaks = Affine(torch.randn(num_tokens, 32), bias).logits([quantize(torch.rand(7, 32))])
    torch.testing.assert_close(log_norms, logits.logsumexp(dim=1))
    assert torch.equal(peaks, logits.view(7, -1, 64).amax(dim=2))
    assert (logits[:, -3:] == float("-inf")).all()


@native
@pytest.mark.parametrize("width", [7, 16, 40])
def test_attention_is_softmax_and_weighted_sum(width: int) -> None:
    num_entries, rows_each, lens = 3, 2, torch.tensor([1, width, 5])
    keys, values = torch.randn(num_entries, width, 48), torch.rand(num_entries, width, 80) * 2 - 1
    queries = torch.randn(num_entries * rows_each, 48)
    mask = torch.arange(width) < lens[:, None]
    contexts = torch.empty(num_entries * rows_each, 80, dtype=torch.uint8)
    weights = attend(queries, keys, values, mask, contexts, 1.0)
    scores: Tensor = queries.view(num_entries, rows_each, -1) @ keys.transpose(1, 2)
    expected = torch.where(mask[:, None], scores, float("-inf")).softmax(dim=-1)
    torch.testing.assert_close(weights, expected.flatten(0, 1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dequantize(contexts), (expected @ values).flatten(0, 1), atol=0.005, rtol=0)


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
        (new_h, *new_kept), floats = NativeCell(cell, [(32, 1.0)]).step(
            [quantize(x)], (quantize(h), *kept), None, None, wants_floats=True
        )
    assert floats is not None
    torch.testing.assert_close(floats, expected[0], atol=0.02, rtol=0)
    torch.testing.assert_close(dequantize(new_h), floats, atol=0.005, rtol=0)
    for part, expected_part in zip(new_kept, expected[-1:], strict=False):
        torch.testing.assert_close(part, expected_part, atol=0.03, rtol=0.005)
