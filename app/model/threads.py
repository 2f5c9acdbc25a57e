"""torch's compute threads: workers of one thread at a time.

OpenMP keeps a team of workers for every thread that ever computed in parallel. With more workers
than cores none of them spins between two operations any more, and each operation pays for waking
them: a sixth of a decoding step. So what is computed once is computed in a thread that ends, and
while an engine runs, other threads compute alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def run_in_fresh_thread(work: Callable[..., Result], *arguments: Any) -> Result:
    """`work(*arguments)` in a thread that ends with it, and its workers too."""
    with ThreadPoolExecutor(1, thread_name_prefix="polyprefix-passing") as thread:
        return thread.submit(work, *arguments).result()


@contextmanager
def single_thread_pool() -> Iterator[None]:
    """The calling thread keeps its workers; threads that begin to compute meanwhile get none.

    torch keeps the number of threads per thread, and for newcomers the one that was set last.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    run_in_fresh_thread(torch.set_num_threads, 1)
    try:
        yield
    finally:
        run_in_fresh_thread(torch.set_num_threads, num_threads)
