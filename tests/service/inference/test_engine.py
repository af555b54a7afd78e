"""The engine's thread: requests join, leave, fail and drain between steps that the test holds and releases."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from model.decoding.search import SearchOptions
from model.errors import CheckpointError
from model.translator import Translator
from service.errors import DeadlinePassed, Draining, EngineFailure, LimitExceeded, ModelFailed, ModelLoading, QueueFull
from service.inference.engine import Engine
from service.inference.scheduler import Progress
from service.metrics import Metrics

TIMEOUT_SECONDS = 30.0
EOS = 3
OPTIONS = SearchOptions(k=2)

Segment = tuple[list[int], SearchOptions]
StartEngine = Callable[..., Engine]


def segment(*token_ids: int, k: int = 2) -> Segment:
    """Takes the stand-in as many steps as it has tokens, `<eos>` counted."""
    return [*token_ids, EOS], SearchOptions(search="beam", k=k)


def source_ids(*segments: Segment) -> list[list[int]]:
    return [ids for ids, _ in segments]


@pytest.fixture
def start() -> Iterator[StartEngine]:
    """`start(translator, …)`: a running engine; closed at the end of the test."""
    engines: list[tuple[Engine, Any]] = []

    def starting(translator: Any, *, max_rows: int = 16, max_queued_segments: int = 100, **options: Any) -> Engine:
        engine = Engine(
            "en-fr",
            lambda: translator,
            max_rows=max_rows,
            max_queued_segments=max_queued_segments,
            metrics=Metrics(),
            **options,
        )
        engine.start()
        assert engine.wait_until_loaded(TIMEOUT_SECONDS)
        engines.append((engine, translator))
        return engine

    yield starting
    for engine, translator in engines:
        for decoder in getattr(translator, "decoders", []):
            decoder.let_go()
        engine.close(TIMEOUT_SECONDS)


@pytest.fixture
def held(make_translator: Any) -> Any:
    """A stand-in whose every step waits for `release`."""
    return make_translator(is_held=True)


# -- deadlines and progress


class Clock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_at_the_deadline_the_best_so_far_is_the_answer_and_its_rows_are_free(start: StartEngine, held: Any) -> None:
    clock = Clock()
    engine = start(held, max_rows=2, clock=clock)
    decoder = held.decoders[-1]
    future = engine.submit([segment(10, 11, 12, 13), segment(20)], deadline_seconds=5.0)
    decoder.begun_step()
    decoder.release()
    decoder.begun_step()
    clock.now = 6.0
    decoder.release()
    results = future.result(TIMEOUT_SECONDS).results
    assert [r.hypotheses[0].token_ids for r in results] == [(10, 11), ()]
    assert {r.hypotheses[0].finish for r in results} == {"deadline"}
    assert decoder.num_segments == 0


def test_a_deadline_before_the_first_token_is_an_error(start: StartEngine, held: Any) -> None:
    clock = Clock()
    engine = start(held, max_rows=2, clock=clock)
    decoder = held.decoders[-1]
    first = engine.submit([segment(10, 11)])
    decoder.begun_step()
    late = engine.submit([segment(20)], deadline_seconds=1.0)
    clock.now = 2.0
    decoder.let_go()
    with pytest.raises(DeadlinePassed):
        late.result(TIMEOUT_SECONDS)
    assert len(first.result(TIMEOUT_SECONDS).results) == 1


def test_progress_tells_what_is_done_and_what_the_next_segment_starts_with(
    start: StartEngine, make_translator: Any
) -> None:
    engine = start(make_translator())
    seen: list[Progress] = []
    engine.submit([segment(10, 11, 12), segment(20)], on_progress=seen.append).result(TIMEOUT_SECONDS)
    assert [progress.agreed_ids for progress in seen] == [[10], [10, 11], [10, 11, 12]]
    is_done = [[result is not None for result in progress.results] for progress in seen]
    assert is_done == [[False, False], [False, True], [False, True]]


# -- joining and leaving


def test_a_request_that_arrives_during_a_step_is_live_in_the_next(start: StartEngine, held: Any) -> None:
    engine, first, second = start(held), segment(5, 6, 7), segment(8)
    engine.submit([first])
    decoder = held.decoders[-1]
    assert decoder.begun_step() == source_ids(first)
    engine.submit([second])
    decoder.release()
    assert decoder.begun_step() == source_ids(first, second)


def test_a_short_request_is_answered_while_a_long_one_goes_on(start: StartEngine, held: Any) -> None:
    engine = start(held)
    long, short = engine.submit([segment(*range(4, 40))]), engine.submit([segment(4)])
    held.decoders[-1].release(3)
    assert short.result(TIMEOUT_SECONDS).results[0].hypotheses[0].token_ids == (4,)
    assert not long.done()


def test_results_stand_in_the_order_of_the_segments(start: StartEngine, make_translator: Any) -> None:
    engine = start(make_translator())
    segments = [segment(*[4 + i] * (1 + 7 * i % 5)) for i in range(50)]
    outcome = engine.submit(segments).result(TIMEOUT_SECONDS)
    assert [[*r.hypotheses[0].token_ids, EOS] for r in outcome.results] == source_ids(*segments)


def test_a_cancelled_request_is_not_in_the_next_step(start: StartEngine, held: Any) -> None:
    engine, first, second = start(held), segment(5, 6, 7), segment(8, 9, 10)
    future, _ = engine.submit([first]), engine.submit([second])
    decoder = held.decoders[-1]
    while len(decoder.begun_step()) < 2:  # both are live, the second perhaps a step later
        decoder.release()
    assert future.cancel()
    decoder.release()
    assert decoder.begun_step() == source_ids(second)


def test_a_request_that_is_cancelled_while_it_waits_is_never_admitted(start: StartEngine, held: Any) -> None:
    engine = start(held, max_rows=4)
    wide, waiting = segment(5, 6, k=4), segment(7)
    first = engine.submit([wide])
    decoder = held.decoders[-1]
    decoder.begun_step()
    assert engine.submit([waiting]).cancel()
    decoder.let_go()
    first.result(TIMEOUT_SECONDS)
    engine.close(TIMEOUT_SECONDS)
    assert decoder.batches == [source_ids(wide)]
    assert engine.num_waiting == 0


def test_a_single_text_is_decoded_beside_a_list_that_fills_the_table(start: StartEngine, held: Any) -> None:
    engine, single = start(held, max_rows=16), segment(4)
    engine.submit([segment(*[9] * 30) for _ in range(90)])
    express, bulk = (held.new_decoders.get(timeout=TIMEOUT_SECONDS) for _ in range(2))
    bulk.begun_step()
    answer = engine.submit([single])
    bulk.release()
    assert express.begun_step() == [source_ids(single)[0]]
    express.release(len(source_ids(single)[0]))
    assert bulk.begun_step()  # the list goes on
    answer.result(TIMEOUT_SECONDS)


def test_the_table_never_holds_more_rows_than_it_has(start: StartEngine, make_translator: Any) -> None:
    translator = make_translator()
    engine = start(translator, max_rows=16)
    seen: list[int] = []
    decoder = translator.decoders[-1]
    step = decoder.step
    decoder.step = lambda: (seen.append(decoder.num_rows), step())[1]
    futures = [engine.submit([segment(*[5] * (n % 7 + 1), k=k)] * 3) for n in range(5) for k in (1, 3, 8, 16)]
    for future in futures:
        future.result(TIMEOUT_SECONDS)
    assert max(seen) <= 16
    assert engine.num_live_rows == 0


# -- refusing


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(start: StartEngine, held: Any) -> None:
    engine = start(held, max_rows=2, max_queued_segments=3)
    engine.submit([segment(4)])
    held.decoders[-1].begun_step()
    engine.submit([segment(5)] * 3)
    with pytest.raises(QueueFull, match="RECURRA_MAX_QUEUED_SEGMENTS") as refusal:
        engine.submit([segment(6)])
    assert 0 < refusal.value.retry_after_seconds <= 30


def test_a_request_that_no_queue_could_hold_is_refused_for_good(start: StartEngine, held: Any) -> None:
    with pytest.raises(LimitExceeded, match="4 sentences; allowed is at most 3"):
        start(held, max_queued_segments=3).submit([segment(4)] * 4)


def test_nothing_is_accepted_before_the_model_is_loaded() -> None:
    may_load = threading.Event()

    def load() -> Translator:
        may_load.wait(TIMEOUT_SECONDS)
        raise CheckpointError("config.json", "is missing")

    engine = Engine("en-fr", load, max_rows=8, max_queued_segments=8, metrics=Metrics())
    engine.start()
    with pytest.raises(ModelLoading):
        engine.submit([segment(4)])
    may_load.set()
    assert engine.wait_until_loaded(TIMEOUT_SECONDS)
    with pytest.raises(ModelFailed, match=r"config.json: is missing"):
        engine.submit([segment(4)])


@pytest.mark.parametrize("error", [CheckpointError("a", "b"), RuntimeError("c"), MemoryError("d")])
def test_a_model_that_cannot_be_loaded_leaves_its_cause(error: Exception) -> None:
    def load() -> Translator:
        raise error

    engine = Engine("en-fr", load, max_rows=8, max_queued_segments=8, metrics=Metrics())
    engine.start()
    assert engine.wait_until_loaded(TIMEOUT_SECONDS)
    assert engine.state == "failed"
    assert str(error) in engine.cause


# -- failing


def test_a_failed_step_fails_the_live_requests_and_the_engine_goes_on(start: StartEngine, held: Any) -> None:
    engine = start(held)
    first = engine.submit([segment(5, 6)])
    decoder = held.decoders[-1]
    decoder.begun_step()
    decoder.fail_steps = 1
    decoder.release()
    with pytest.raises(EngineFailure):
        first.result(TIMEOUT_SECONDS)
    second = engine.submit([segment(7)])
    held.decoders[-1].let_go()
    assert second.result(TIMEOUT_SECONDS).results[0].hypotheses[0].token_ids == (7,)
    assert len(held.decoders) == 2  # nothing of the old table is trusted


def test_a_failed_encoding_fails_only_what_was_being_admitted(start: StartEngine, held: Any) -> None:
    engine = start(held)
    alive = engine.submit([segment(5, 6)])
    decoder = held.decoders[-1]
    decoder.begun_step()
    decoder.fail_adds = 1
    refused = engine.submit([segment(7)])
    decoder.let_go()
    with pytest.raises(EngineFailure):
        refused.result(TIMEOUT_SECONDS)
    assert alive.result(TIMEOUT_SECONDS).results[0].hypotheses[0].token_ids == (5, 6)


def test_nobody_is_left_waiting_when_the_engine_itself_fails(start: StartEngine, held: Any) -> None:
    engine = start(held)
    first = engine.submit([segment(5, 6)])
    decoder = held.decoders[-1]
    decoder.begun_step()
    waiting = engine.submit([segment(7)])
    decoder.fail_steps = 1
    held.decoder = None  # no new table can be made
    decoder.release()
    for future in (first, waiting):
        with pytest.raises(EngineFailure):
            future.result(TIMEOUT_SECONDS)
    with pytest.raises(ModelFailed):
        engine.submit([segment(8)])


# -- shutting down


def test_draining_refuses_new_requests_and_finishes_the_accepted(start: StartEngine, held: Any) -> None:
    engine = start(held, max_rows=2)
    live, waiting = engine.submit([segment(5)]), engine.submit([segment(6)])
    held.decoders[-1].begun_step()
    engine.begin_drain()
    with pytest.raises(Draining):
        engine.submit([segment(7)])
    held.decoders[-1].let_go()
    engine.close(TIMEOUT_SECONDS)
    assert live.result(0).results[0].hypotheses[0].token_ids == (5,)
    assert waiting.result(0).results[0].hypotheses[0].token_ids == (6,)
    assert engine.state == "stopped"


def test_what_is_left_at_the_time_limit_fails(start: StartEngine, held: Any) -> None:
    engine = start(held, max_rows=2)
    futures = [engine.submit([segment(*range(4, 30))]), engine.submit([segment(6)])]
    decoder = held.decoders[-1]
    decoder.begun_step()
    closing = threading.Thread(target=engine.close, args=(0.0,))
    closing.start()
    decoder.release(2)  # the step that runs is finished, no other begun
    closing.join(TIMEOUT_SECONDS)
    for future in futures:
        with pytest.raises(Draining):
            future.result(TIMEOUT_SECONDS)


def test_an_engine_can_be_closed_twice_and_without_a_start(start: StartEngine, make_translator: Any) -> None:
    engine = start(make_translator())
    engine.close(TIMEOUT_SECONDS)
    engine.close(TIMEOUT_SECONDS)
    Engine("x", make_translator, max_rows=8, max_queued_segments=8, metrics=Metrics()).close(0.0)


# -- measuring


def test_a_freed_engine_holds_nothing_of_the_model(models_folder: Path) -> None:
    """Its memory does not wait for the garbage collector, which may take minutes to look."""
    engine = Engine(
        "en-fr",
        lambda: Translator.load(models_folder / "en-fr"),
        max_rows=16,
        max_queued_segments=100,
        metrics=Metrics(),
    )
    engine.start()
    assert engine.wait_until_loaded(TIMEOUT_SECONDS)
    engine.submit([segment(4, 5, 6)]).result(TIMEOUT_SECONDS)
    assert engine.translator is not None
    network = weakref.ref(engine.translator.network)
    gc.disable()
    try:
        engine.close(TIMEOUT_SECONDS)
        engine.free()
        assert network() is None
    finally:
        gc.enable()


def test_queue_encode_and_decode_add_up_to_the_time_in_the_engine(start: StartEngine, make_translator: Any) -> None:
    ticks = count()
    times: list[float] = []

    def clock() -> float:
        times.append(float(next(ticks)))
        return times[-1]

    engine = start(make_translator(), clock=clock)
    submitted_at = times[-1] + 1
    timings = engine.submit([segment(4, 5, 6)]).result(TIMEOUT_SECONDS).timings
    assert timings.encode_seconds == 1.0  # one tick: one batch
    total = timings.queue_seconds + timings.encode_seconds + timings.decode_seconds
    assert total <= times[-1] - submitted_at
    assert min(timings.queue_seconds, timings.decode_seconds) > 0


def test_steps_and_waits_are_counted(start: StartEngine, make_translator: Any) -> None:
    metrics = Metrics()
    engine = Engine("en-fr", make_translator, max_rows=16, max_queued_segments=9, metrics=metrics)
    engine.start()
    assert engine.wait_until_loaded(TIMEOUT_SECONDS)
    engine.submit([segment(4, 5), segment(6, 7)]).result(TIMEOUT_SECONDS)
    engine.close(TIMEOUT_SECONDS)
    value = metrics.registry.get_sample_value
    assert value("recurra_step_seconds_count") == 3  # two tokens and <eos>
    assert value("recurra_step_rows_sum") == 3 * 4  # two segments of two rows
    for name in ("queue", "encode", "decode", "time_to_first_token"):
        assert value(f"recurra_{name}_seconds_count") == 1


# -- the true decoder


def test_any_company_gets_what_the_translator_gives_alone(start: StartEngine, models_folder: Path) -> None:
    translator = Translator.load(models_folder / "en-fr", precision="fp32")
    texts = ["I am cold.", "You are late. He runs!", "Tom", "We won.\nGo on.", "She is nice and he is tired."] * 6
    engine = start(translator, max_rows=40)
    expected, futures, prepared = [], [], []
    for i, text in enumerate(texts):
        k = (1, 2, 5)[i % 3]
        expected.append(translator.translate(text, k=k).text)
        prepared.append(translator.prepare(text))
        options = SearchOptions(search="greedy" if k == 1 else "beam", k=k)
        futures.append(engine.submit([(ids, options) for ids in prepared[-1].segments]))
    outcomes = [future.result(TIMEOUT_SECONDS) for future in futures]
    texts_out = [translator.finish(p, o.results).text for p, o in zip(prepared, outcomes, strict=True)]
    assert texts_out == expected
