"""Decodes a whole list: the same loop as the service's, with the list as its queue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from model.decoding.search import SearchOptions, SegmentResult
from model.decoding.stepper import StepDecoder

# Room for a quarter of the table is filled at once: encoding a few sentences costs nearly as much as encoding one.
_REFILL_SHARE = 4


def decode_all(
    decoder: StepDecoder, segments: Sequence[tuple[Sequence[int], SearchOptions]]
) -> Iterator[tuple[int, SegmentResult]]:
    """Decodes segments, the longest first: neighbours of like length share an encoder batch.

    Args:
        decoder: empty.
        segments: source ids and options of each.

    Yields:
        Each segment's position and result, as they come.
    """
    waiting = sorted(range(len(segments)), key=lambda i: len(segments[i][0]))  # taken from the end
    positions: dict[int, int] = {}
    while waiting or positions:
        batch = _next_batch(decoder, segments, waiting)
        positions.update(zip(decoder.add([segments[i] for i in batch]), batch, strict=True))
        for handle, result in decoder.step():
            yield positions.pop(handle), result


def _next_batch(
    decoder: StepDecoder, segments: Sequence[tuple[Sequence[int], SearchOptions]], waiting: list[int]
) -> list[int]:
    room = decoder.max_rows - decoder.num_rows
    if decoder.num_segments and room < decoder.max_rows // _REFILL_SHARE:
        return []
    batch: list[int] = []
    while waiting and (room >= segments[waiting[-1]][1].num_rows or not (batch or decoder.num_segments)):
        batch.append(waiting.pop())
        room -= segments[batch[-1]][1].num_rows
    return batch
