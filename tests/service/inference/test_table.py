"""Whose turn it is, of two tables."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from model.decoding.search import SearchOptions
from service.inference.scheduler import EngineRequest
from service.inference.table import BULK_WEIGHT, EXPRESS_WEIGHT, Table, new_tables, next_table


def request(num_segments: int = 1) -> EngineRequest:
    return EngineRequest([([4, 3], SearchOptions())] * num_segments, 0.0, future=Future[Any]())


def turns(tables: tuple[Table, Table], costs: dict[Table, float], count: int) -> list[Table]:
    """The tables that had the turns, each at its cost in seconds."""
    taken: list[Table] = []
    for _ in range(count):
        table = next_table(tables)
        assert table is not None
        table.had += costs[table] / table.weight
        taken.append(table)
    return taken


def test_nobody_has_a_turn_without_work() -> None:
    assert next_table(new_tables(16)) is None


def test_a_table_alone_has_every_turn() -> None:
    express, bulk = new_tables(16)
    bulk.scheduler.add(request(90))
    assert turns((express, bulk), {bulk: 0.006}, 5) == [bulk] * 5


def test_time_is_shared_by_weight_however_long_the_turns_are() -> None:
    express, bulk = new_tables(16)
    express.scheduler.add(request())
    bulk.scheduler.add(request(90))
    costs = {express: 0.001, bulk: 0.006}
    taken = turns((express, bulk), costs, 1000)
    seconds = {table: costs[table] * taken.count(table) for table in costs}
    assert abs(seconds[express] / seconds[bulk] - EXPRESS_WEIGHT / BULK_WEIGHT) < 0.05


def test_a_newcomer_waits_for_one_turn_of_the_other_at_most_and_has_saved_up_none() -> None:
    express, bulk = new_tables(16)
    bulk.scheduler.add(request(90))
    turns((express, bulk), {bulk: 0.006}, 1000)
    express.scheduler.add(request())
    taken = turns((express, bulk), {express: 0.001, bulk: 0.006}, 40)
    assert express in taken[:2]
    assert 2 <= taken.count(bulk) <= 5  # and the list is not starved until the newcomer has had as much as it
