from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait

import numpy as np
import pytest

from clipette.serve.batching import Batcher
from clipette.serve.faults import Overloaded, Stopping
from clipette.types import Floats


class Model:
    """Rows [value, value²]; waits for ``gate``; remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.seconds = 0.0

    def __call__(self, items: Sequence[float]) -> Floats:
        self.begun.set()
        assert self.gate.wait(20)
        time.sleep(self.seconds)
        self.batches.append(list(items))
        if 13.0 in items:
            raise ValueError("thirteen")
        return np.array([[x, x * x] for x in items], np.float32)


class Watcher:
    def __init__(self) -> None:
        self.batches: list[int] = []
        self.refusals: list[str] = []

    def batch(self, queue: str, items: int, seconds: float) -> None:
        self.batches.append(items)

    def refused(self, queue: str, why: str) -> None:
        self.refusals.append(why)


@pytest.fixture
def model() -> Iterator[Model]:
    model = Model()
    yield model
    model.gate.set()


def batcher(model: Model, **given: object) -> Batcher[float]:
    options = {"name": "test", "size": 4, "wait": 0.0, "queue": 16, "patience": 10.0, **given}
    return Batcher(model, **options)  # type: ignore[arg-type]


def hold(model: Model, made: Batcher[float]) -> Future[Floats]:
    """Occupy the model, so that what follows waits in the queue."""
    model.gate.clear()
    model.begun.clear()
    first = made.submit([0.0])
    assert model.begun.wait(10)
    return first


def test_rows_belong_to_their_items_in_order(model: Model) -> None:
    made = batcher(model)
    assert made.submit([3.0, 1.0, 2.0]).result(10).tolist() == [[3, 9], [1, 1], [2, 4]]
    assert made.submit([]).result(10).shape == (0, 0)
    made.close()


def test_requests_that_wait_share_one_batch(model: Model) -> None:
    watcher = Watcher()
    made = batcher(model, watcher=watcher)
    first = hold(model, made)
    others = [made.submit([float(n)]) for n in (1, 2, 3)]
    assert made.waiting == 3
    model.gate.set()
    wait([first, *others], 10)
    assert model.batches == [[0.0], [1.0, 2.0, 3.0]]
    assert [future.result()[0, 1] for future in others] == [1, 4, 9]
    assert watcher.batches == [1, 3]
    made.close()


def test_a_large_request_is_cut_and_put_together_again(model: Model) -> None:
    made = batcher(model)
    rows = made.submit([float(n) for n in range(10)]).result(10)
    assert rows[:, 0].tolist() == list(range(10))
    assert [len(batch) for batch in model.batches] == [4, 4, 2]
    made.close()


def test_a_large_request_holds_up_no_small_one(model: Model) -> None:
    made = batcher(model, queue=100)
    first = hold(model, made)
    large, small = made.submit([1.0, 2.0, 3.0, 4.0, 5.0]), made.submit([6.0])
    model.gate.set()
    wait([first, large, small], 10)
    assert model.batches == [[0.0], [1.0, 2.0, 3.0, 6.0], [4.0, 5.0]]
    assert large.result()[:, 0].tolist() == [1, 2, 3, 4, 5]
    # More requests than places: each has its turn, and an unfinished one queues again behind the others.
    model.batches.clear()
    first = hold(model, made)
    futures = [made.submit([10.0 * n, 10.0 * n + 1]) for n in range(2, 8)]
    model.gate.set()
    wait([first, *futures], 10)
    assert model.batches == [[0.0], [20, 30, 40, 50], [60, 70, 21, 31], [41, 51, 61, 71]]
    assert [future.result()[:, 0].tolist() for future in futures] == [[10.0 * n, 10.0 * n + 1] for n in range(2, 8)]
    made.close()


def test_a_lone_request_waits_for_nobody(model: Model) -> None:
    made = batcher(model, wait=5.0)
    begun = time.monotonic()
    for _ in range(3):
        made.submit([1.0]).result(10)
    assert time.monotonic() - begun < 4
    made.close()


def test_after_a_shared_batch_the_next_waits_for_company(model: Model) -> None:
    made = batcher(model, wait=1.0)
    first = hold(model, made)
    shared = [made.submit([1.0]), made.submit([2.0])]
    model.gate.set()
    wait([first, *shared], 10)
    early = made.submit([3.0])
    time.sleep(0.05)
    late = made.submit([4.0])
    wait([early, late], 10)
    assert model.batches[-1] == [3.0, 4.0]
    # Nobody comes: it ends by itself.
    assert made.submit([5.0]).result(10).tolist() == [[5, 25]]
    made.close()


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(model: Model) -> None:
    watcher = Watcher()
    made = batcher(model, queue=3, watcher=watcher)
    first = hold(model, made)
    kept = made.submit([1.0, 2.0])
    with pytest.raises(Overloaded, match="queue of the test encoder is full") as refused:
        made.submit([3.0, 4.0])
    assert refused.value.status == 429
    assert int(refused.value.headers["Retry-After"]) >= 1
    last = made.submit([5.0])
    model.gate.set()
    wait([first, kept, last], 10)
    assert watcher.refusals == ["queue full"]
    assert [3.0, 4.0] not in model.batches
    assert sorted(item for batch in model.batches for item in batch) == [0, 1, 2, 5]
    made.close()


def test_what_waited_too_long_is_refused_without_being_run(model: Model) -> None:
    made = batcher(model, patience=0.2)
    first = hold(model, made)
    late = made.submit([7.0])
    time.sleep(0.3)
    model.gate.set()
    first.result(10)
    with pytest.raises(Overloaded):
        late.result(10)
    assert [7.0] not in model.batches
    assert made.waiting == 0
    # Refused for its own wait, not for those to come.
    assert made.submit([8.0]).result(10).tolist() == [[8, 64]]
    made.close()


def test_an_expected_long_wait_is_refused_beforehand(model: Model) -> None:
    made = batcher(model, size=1, patience=1.6)
    model.seconds = 1.0
    made.submit([1.0]).result(10)
    model.gate.clear()
    model.begun.clear()
    running = made.submit([2.0])
    assert model.begun.wait(10)
    # One batch of 1 s ahead is within 1.6 s; two are not.
    accepted = [running, made.submit([3.0]), made.submit([4.0])]
    with pytest.raises(Overloaded, match="busy"):
        made.submit([5.0])
    model.seconds = 0.0
    model.gate.set()
    wait(accepted, 10)
    made.close()


def test_abandoned_requests_cost_nothing(model: Model) -> None:
    made = batcher(model)
    first = hold(model, made)
    gone, kept = made.submit([1.0, 2.0]), made.submit([3.0])
    assert made.waiting == 3
    assert gone.cancel()
    # While the model is still busy: abandoned requests take nobody's room.
    assert made.waiting == 1
    model.gate.set()
    wait([first, kept], 10)
    assert model.batches == [[0.0], [3.0]]
    assert made.waiting == 0
    # Abandoned while it runs: nothing to save, nothing breaks.
    running = hold(model, made)
    assert running.cancel()
    model.gate.set()
    assert made.submit([4.0]).result(10).tolist() == [[4, 16]]
    assert made.waiting == 0
    made.close()


def test_one_bad_item_fails_its_own_request_alone(model: Model) -> None:
    made = batcher(model)
    first = hold(model, made)
    good, bad, other = made.submit([1.0]), made.submit([13.0]), made.submit([2.0])
    model.gate.set()
    wait([first, good, bad, other], 10)
    assert good.result().tolist() == [[1, 1]]
    assert other.result().tolist() == [[2, 4]]
    with pytest.raises(ValueError, match="thirteen"):
        bad.result()
    made.close()


def test_a_large_request_that_fails_in_its_first_part_is_not_run_further(model: Model) -> None:
    made = batcher(model)
    failed = made.submit([13.0, *[float(n) for n in range(20, 27)]])
    with pytest.raises(ValueError, match="thirteen"):
        failed.result(10)
    assert made.submit([1.0]).result(10).tolist() == [[1, 1]]
    assert made.waiting == 0
    assert sum(map(len, model.batches)) <= 5
    made.close()


def test_too_few_rows_are_an_error_and_the_thread_lives_on() -> None:
    made: Batcher[float] = Batcher(
        lambda items: np.zeros((1, 2), np.float32), name="short", size=4, wait=0, queue=8, patience=1
    )
    with pytest.raises(RuntimeError, match="1 vectors for 2 items"):
        made.submit([1.0, 2.0]).result(10)
    assert made.alive
    made.close()


def test_closing_finishes_what_was_accepted(model: Model) -> None:
    made = batcher(model)
    first = hold(model, made)
    waiting = made.submit([1.0])
    closer = threading.Thread(target=made.close)
    closer.start()
    time.sleep(0.05)
    with pytest.raises(Stopping):
        made.submit([2.0])
    model.gate.set()
    closer.join(10)
    assert first.result(0).tolist() == [[0, 0]]
    assert waiting.result(0).tolist() == [[1, 1]]
    made.close()


def test_many_threads_get_their_own_rows(model: Model) -> None:
    made = batcher(model, size=8, wait=0.001, queue=1000)
    wrong: list[float] = []

    def ask(own: int) -> None:
        for n in range(20):
            value = float(1000 + own * 100 + n)
            if made.submit([value, -value]).result(20)[:, 0].tolist() != [value, -value]:
                wrong.append(value)

    threads = [threading.Thread(target=ask, args=(own,)) for own in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
    assert sum(map(len, model.batches)) == 12 * 20 * 2
    assert max(map(len, model.batches)) <= 8
    made.close()
