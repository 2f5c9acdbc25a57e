"""torch's workers belong to one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from app.model.threads import run_in_fresh_thread, single_thread_pool


def in_new_thread(work: Callable[[], int]) -> int:
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def test_a_passing_thread_has_ended_when_its_result_is_there() -> None:
    thread = run_in_fresh_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_what_a_passing_thread_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run_in_fresh_thread(lambda: 1 // 0)


def test_while_one_thread_computes_with_a_team_newcomers_compute_alone() -> None:
    def engine() -> int:
        torch.set_num_threads(3)
        with single_thread_pool():
            assert in_new_thread(torch.get_num_threads) == 1
            mine = torch.get_num_threads()
        assert in_new_thread(torch.get_num_threads) == 3
        return mine

    before = torch.get_num_threads()
    try:
        assert in_new_thread(engine) == 3
    finally:
        torch.set_num_threads(before)
