"""The inbox: nothing is lost, nothing changes places, and closing it ends the reader."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.engine import router as inbox_module
from app.engine.router import Cancel, Inbox, Submit
from tests.engine.harness import make_request


def cancels(inbox: Inbox, *, wait: bool = False) -> list[str]:
    """Ids of all cancel messages."""
    return [item.request_id for item in inbox.take(wait=wait) or () if isinstance(item, Cancel)]


def test_messages_come_in_order_and_once() -> None:
    inbox = Inbox()
    assert inbox.take(wait=False) == []
    messages = [Submit(make_request("a", [1]), 7), Cancel("a"), Cancel("b")]
    for message in messages:
        inbox.put(message)
    assert inbox.take(wait=True) == messages
    assert inbox.take(wait=False) == []


def test_a_submission_knows_when_it_came() -> None:
    first, second = (Submit(make_request(name, [1]), 0) for name in "ab")
    assert 0 < first.submitted_at <= second.submitted_at


@pytest.mark.parametrize("wait", [True, False])
def test_a_closed_inbox_ends_the_reader_whatever_is_in_it(wait: bool) -> None:
    inbox = Inbox()
    inbox.put(Cancel("a"))
    inbox.close()
    assert inbox.take(wait=wait) is None
    inbox.put(Cancel("b"))
    assert inbox.take(wait=wait) is None


class WatchedCondition(threading.Condition):
    """A condition that says when somebody has begun to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.waiting.set()
        return super().wait(timeout)


@pytest.mark.parametrize(
    ("act", "expected"),
    [(lambda inbox: inbox.put(Cancel("a")), [Cancel("a")]), (Inbox.close, None)],
    ids=["put", "close"],
)
def test_a_reader_that_waits_is_woken(
    act: Callable[[Inbox], None], expected: list[Cancel] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = WatchedCondition()
    monkeypatch.setattr(inbox_module.threading, "Condition", lambda: watched)
    inbox = Inbox()
    monkeypatch.undo()
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(inbox.take, wait=True)
        assert watched.waiting.wait(10)
        assert not reader.done()
        act(inbox)
        assert reader.result(10) == expected


def test_nothing_is_lost_or_reordered_between_many_writers_and_a_reader() -> None:
    inbox, received = Inbox(), defaultdict(list)
    writers, count = 6, 300

    def write(writer: int) -> None:
        for index in range(count):
            inbox.put(Cancel(f"{writer}:{index}"))

    with ThreadPoolExecutor(writers) as pool:
        list_of_done = [pool.submit(write, writer) for writer in range(writers)]
        while sum(map(len, received.values())) < writers * count:
            for name in cancels(inbox, wait=True):
                writer, index = name.split(":")
                received[writer].append(int(index))
        assert all(done.result(10) is None for done in list_of_done)
    assert dict(received) == {str(writer): list(range(count)) for writer in range(writers)}


def test_a_burst_that_meets_a_waiting_reader_is_taken_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbox_module, "_BURST_GAP_S", 1.0)
    monkeypatch.setattr(inbox_module, "_LONGEST_BURST_S", 60.0)
    inbox = Inbox()
    with ThreadPoolExecutor(1) as reader:
        taken = reader.submit(inbox.take, wait=True)
        for number in range(5):
            inbox.put(Cancel(str(number)))
            threading.Event().wait(0.01)
        assert taken.result() == [Cancel(str(number)) for number in range(5)]


def test_take_cuts_a_burst_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "_BURST_GAP_S", 60.0)
    monkeypatch.setattr(inbox_module, "_LONGEST_BURST_S", 0.05)
    inbox, done = Inbox(), threading.Event()

    def write() -> None:
        while not done.wait(0.001):
            inbox.put(Cancel("again"))

    with ThreadPoolExecutor(2) as threads:
        taken = threads.submit(inbox.take, wait=True)
        threads.submit(write)
        try:
            assert taken.result(timeout=30)
        finally:
            done.set()
