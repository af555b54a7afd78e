"""Who gets the next free rows."""

from __future__ import annotations

import pytest

from model.decoding.search import SearchOptions
from service.inference.scheduler import EngineRequest, Scheduler, Ticket

ROWS = 40  # the last 5 are for newcomers


def request(count: int, *, k: int = 5, length: int = 4) -> EngineRequest:
    options = SearchOptions(search="beam", k=k)
    return EngineRequest([([7] * length, options) for _ in range(count)], submitted_at=0.0)


def request_of_lengths(*lengths: int) -> EngineRequest:
    return EngineRequest([([7] * n, SearchOptions(k=1)) for n in lengths], submitted_at=0.0)


def scheduler_with(*requests: EngineRequest, max_rows: int = ROWS, max_encode_tokens: int = 4096) -> Scheduler:
    scheduler = Scheduler(max_rows=max_rows, max_encode_tokens=max_encode_tokens)
    for added in requests:
        scheduler.add(added)
    return scheduler


def counts(groups: list[list[Ticket]], *requests: EngineRequest) -> list[int]:
    tickets = [ticket for group in groups for ticket in group]
    return [sum(ticket.request is one for ticket in tickets) for one in requests]


def release(held: EngineRequest, num_segments: int) -> int:
    """Ends segments of a request; the rows still held."""
    held.num_rows -= num_segments * held.segments[0][1].k
    return held.num_rows


def test_a_lone_list_fills_the_table_but_for_the_newcomers_share() -> None:
    long = request(100)
    assert counts(scheduler_with(long).admit(0), long) == [7]


def test_a_single_text_is_admitted_at_once_beside_a_list_that_fills_the_table() -> None:
    long, single = request(100), request(1)
    scheduler = scheduler_with(long)
    scheduler.admit(0)
    scheduler.add(single)
    assert counts(scheduler.admit(35), long, single) == [0, 1]


def test_two_lists_share_the_table_evenly() -> None:
    first, second = request(100), request(100)
    assert counts(scheduler_with(first, second).admit(0), first, second) == [4, 3]


def test_freed_rows_go_to_the_list_that_holds_fewer() -> None:
    first, second = request(100), request(100)
    scheduler = scheduler_with(first)
    scheduler.admit(0)
    scheduler.add(second)
    live = release(first, 3)
    assert counts(scheduler.admit(live), first, second) == [0, 3]


def test_a_wide_beam_that_does_not_fit_is_not_overtaken() -> None:
    narrow, wide = request(100, k=5), request(1, k=32)
    scheduler = scheduler_with(narrow)
    scheduler.admit(0)
    scheduler.add(wide)
    assert scheduler.admit(release(narrow, 3)) == []
    assert counts(scheduler.admit(release(narrow, 4)), narrow, wide)[1] == 1


def test_the_widest_beam_allowed_fits_an_empty_table() -> None:
    widest = request(3, k=ROWS)
    assert counts(scheduler_with(widest).admit(0), widest) == [1]


def test_a_refill_waits_until_it_is_a_batch() -> None:
    long = request(200, k=1)
    scheduler = scheduler_with(long, max_rows=80)  # newcomers 10, a batch 10
    live = sum(counts(scheduler.admit(0), long))
    assert live == 70
    assert scheduler.admit(release(long, 9)) == []
    assert counts(scheduler.admit(release(long, 1)), long) == [10]


def test_the_last_few_of_a_list_do_not_wait_for_a_batch() -> None:
    long = request(72, k=1)
    scheduler = scheduler_with(long, max_rows=80)
    scheduler.admit(0)
    assert counts(scheduler.admit(release(long, 2)), long) == [2]


def test_the_longest_segments_of_a_request_go_first() -> None:
    mixed = request_of_lengths(3, 9, 5)
    groups = scheduler_with(mixed).admit(0)
    assert mixed.waiting == type(mixed.waiting)()
    assert sorted(len(ticket.src_ids) for group in groups for ticket in group) == [3, 5, 9]
    one_at_a_time = scheduler_with(request_of_lengths(3, 9, 5), max_encode_tokens=1)
    assert [len(one_at_a_time.admit(0)[0][0].src_ids) for _ in range(3)] == [9, 5, 3]


def test_segments_of_unlike_length_are_encoded_apart() -> None:
    groups = scheduler_with(request_of_lengths(2, 200, 10, 190)).admit(0)
    assert [[len(ticket.src_ids) for ticket in group] for group in groups] == [[2, 10], [190, 200]]


def test_one_round_encodes_no_more_tokens_than_its_budget() -> None:
    long = request(30, k=1, length=10)
    assert counts(scheduler_with(long, max_encode_tokens=35).admit(0), long) == [3]


def test_a_removed_request_is_never_admitted() -> None:
    first, second = request(3), request(3)
    scheduler = scheduler_with(first, second)
    assert scheduler.remove(first) == 3
    assert counts(scheduler.admit(0), first, second) == [0, 3]


def test_every_segment_is_admitted_exactly_once() -> None:
    requests = [request(count, k=k) for count, k in ((50, 5), (3, 1), (20, 12), (1, 40))]
    scheduler = scheduler_with(*requests)
    admitted: list[Ticket] = []
    for _ in range(1000):
        tickets = [ticket for group in scheduler.admit(0) for ticket in group]
        for ticket in tickets:  # each is done at once
            ticket.request.num_rows -= ticket.options.k
        admitted += tickets
    assert len({(id(ticket.request), ticket.index) for ticket in admitted}) == len(admitted) == 74
    assert scheduler.requests == []


def test_newcomers_wait_a_few_steps_for_one_another_where_few_rows_are_live() -> None:
    scheduler = Scheduler(max_rows=320)
    first = request(1)
    scheduler.add(first)
    assert [scheduler.admit(40) for _ in range(8)] == [[]] * 8
    assert [ticket.request for group in scheduler.admit(40) for ticket in group] == [first]


@pytest.mark.parametrize("num_live_rows", [0, 8, 200])
def test_a_newcomer_does_not_wait_where_it_is_many_or_where_steps_are_long(num_live_rows: int) -> None:
    scheduler = Scheduler(max_rows=320)
    scheduler.add(request(1))
    assert len(scheduler.admit(num_live_rows)) == 1
