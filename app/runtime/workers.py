"""Threads for work that blocks, in bounded pools, and for work that is done again and again.

There is a pool for each thing that may be slow or frozen: what waits for one of them keeps no
thread of the others, and no tenant takes all threads of a pool.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from app.errors import Overloaded, TenantQueueFull

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_MAX_WAITING = 2048
_MAX_WAITING_OF_TENANT = 512
_PATIENCE_S = 30.0
_CHECK_PATIENCE_S = 900.0

_log = logging.getLogger(__name__)


class Turns:
    """Turns of tenants, `slots` at a time and `per_tenant` of one tenant; for one event loop.

    Further ones of `what` wait; next is the tenant that has waited longest for one.
    """

    def __init__(
        self,
        what: str,
        slots: int,
        *,
        per_tenant: int,
        max_waiting: int,
        max_waiting_of_tenant: int,
    ) -> None:
        self._what, self._slots, self._per_tenant = what, slots, per_tenant
        self._max_waiting, self._max_waiting_of_tenant = max_waiting, max_waiting_of_tenant
        self.running = Counter[str]()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> dict[str, int]:
        """How many wait, by tenant."""
        return {tenant: len(queue) for tenant, queue in self._waiting.items()}

    async def take(self, tenant: str, patience_s: float) -> None:
        """Returns when it is the tenant's turn, which lasts until `give`.

        TenantQueueFull or Overloaded if too many wait; TimeoutError after `patience_s`.
        """
        if not self._is_full(tenant):
            self.running[tenant] += 1
            return
        if len(self._waiting.get(tenant, ())) >= self._max_waiting_of_tenant:
            raise TenantQueueFull(f"too many {self._what} of this tenant wait")
        if sum(self.waiting.values()) >= self._max_waiting:
            raise Overloaded(f"too many {self._what} wait")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            async with asyncio.timeout(patience_s):
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.give(tenant)  # it was handed a turn and has no use for it
            else:
                self._leave(tenant, turn)
            raise

    def give(self, tenant: str, done: asyncio.Future[Any] | None = None) -> None:
        """Ends a turn of the tenant; `done` is what was computed in it."""
        self.running[tenant] -= 1
        if not self.running[tenant]:
            del self.running[tenant]
        if done is not None and not done.cancelled():
            done.exception()  # seen, though its caller may have left
        for other in list(self._waiting):
            if not self._is_full(other) and self._hand_on(other):
                return

    def _is_full(self, tenant: str) -> bool:
        busy = self.running.total() >= self._slots
        return busy or self.running[tenant] >= self._per_tenant

    def _leave(self, tenant: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(tenant)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[tenant]

    def _hand_on(self, tenant: str) -> bool:
        """Gives the tenant a turn; False if all who waited were cancelled just now."""
        queue = self._waiting.pop(tenant)
        while queue:
            turn = queue.popleft()
            if not turn.done():
                if queue:
                    self._waiting[tenant] = queue  # behind the others
                self.running[tenant] += 1
                turn.set_result(None)
                return True
        return False


class WorkerPool:
    """Threads that tenants share in turns; it belongs to one event loop.

    `threads` pieces of work run at a time, and `per_tenant` of one tenant; further ones wait,
    for `patience_s` at most.
    """

    def __init__(
        self, name: str, threads: int, *, per_tenant: int, patience_s: float = _PATIENCE_S
    ) -> None:
        self._name, self._patience_s = name, patience_s
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._turns = Turns(
            f"requests for '{name}' threads",
            threads,
            per_tenant=per_tenant,
            max_waiting=_MAX_WAITING,
            max_waiting_of_tenant=_MAX_WAITING_OF_TENANT,
        )

    async def run(
        self,
        tenant: str,
        work: Callable[Parameters, Result],
        /,
        *arguments: Parameters.args,
        **named: Parameters.kwargs,
    ) -> Result:
        """What `work` returns, or raises, in a thread; context variables go with it.

        TenantQueueFull or Overloaded if too many wait, or for too long. A caller that is cancelled
        leaves at once; work that runs keeps its thread to its end.
        """
        return await asyncio.shield(await self._start(tenant, partial(work, *arguments, **named)))

    async def finish(
        self,
        tenant: str,
        work: Callable[Parameters, Result],
        /,
        *arguments: Parameters.args,
        **named: Parameters.kwargs,
    ) -> Result:
        """As `run`, for work that changes something: once it runs, its caller hears how it ends.

        A cancellation that comes then is too late: it is not passed on.
        """
        running = await self._start(tenant, partial(work, *arguments, **named))
        while True:
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                if running.cancelled():
                    raise

    def debug_state(self) -> dict[str, dict[str, int]]:
        """Pieces of work that run and that wait, by tenant."""
        return {"running": dict(self._turns.running), "waiting": self._turns.waiting}

    async def close(self) -> None:
        await asyncio.to_thread(self._executor.shutdown)

    async def _start(self, tenant: str, work: Callable[[], Result]) -> asyncio.Future[Result]:
        try:
            await self._turns.take(tenant, self._patience_s)
        except TimeoutError as error:
            raise Overloaded(f"all '{self._name}' threads are busy; try again later") from error
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        try:
            running = loop.run_in_executor(self._executor, context.run, work)
        except BaseException:  # it has been closed
            self._turns.give(tenant)
            raise
        running.add_done_callback(partial(self._turns.give, tenant))
        return running


class Workers:
    """The pools of one server, one for each thing that may be slow."""

    def __init__(self) -> None:
        self.keys = WorkerPool("keys", 4, per_tenant=2)
        """Callers whose key is not known yet; by their address instead of a tenant."""
        self.catalog = WorkerPool("catalog", 8, per_tenant=4)
        """What reads the catalog."""
        self.writes = WorkerPool("writes", 6, per_tenant=3)
        """What changes the catalog, and what is written to the audit log."""
        self.store = WorkerPool("store", 8, per_tenant=3)
        """What reads or writes the object store."""
        self.files = WorkerPool("files", 6, per_tenant=3)
        """What reads or writes local files in transit."""
        self.text = WorkerPool("text", 4, per_tenant=2)
        """What encodes or decodes text."""
        self.checks = WorkerPool("checks", 2, per_tenant=1, patience_s=_CHECK_PATIENCE_S)
        """What checks uploaded files of training data, for minutes where they are large."""

    async def close(self) -> None:
        pools = (
            self.keys,
            self.catalog,
            self.writes,
            self.store,
            self.files,
            self.text,
            self.checks,
        )
        await asyncio.gather(*(pool.close() for pool in pools))


class PeriodicThread:
    """Calls `work` every `period_s` seconds from `start` to `stop`, in a thread of its own.

    With `on_demand`, `work` is only called after `wake`, and again after `period_s` if it fails.
    What it raises is logged once until it works again.
    """

    def __init__(
        self,
        what: str,
        period_s: float,
        work: Callable[[], object],
        *,
        delay_s: float = 0.0,
        on_demand: bool = False,
    ) -> None:
        """`what` names the work in logs; the first call comes `delay_s` after the start."""
        self._what, self._period_s, self._work = what, period_s, work
        self._delay_s, self._on_demand = delay_s, on_demand
        self._ended, self._woken = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the call that runs, if one does."""
        self._ended.set()
        self._woken.set()
        self._thread.join()

    def wake(self) -> None:
        """Makes the next call at once."""
        self._woken.set()

    def _run(self) -> None:
        failing = False
        self._woken.wait(None if self._on_demand else self._delay_s)
        while not self._ended.is_set():
            begun = time.monotonic()
            self._woken.clear()
            try:
                self._work()
            except Exception as error:
                if not failing:
                    _log.warning("%s fails and is tried again: %s", self._what, error)
                failing = True
            else:
                if failing:
                    _log.info("%s works again", self._what)
                failing = False
            if self._on_demand and not failing:
                self._woken.wait()
            else:
                self._woken.wait(max(0.0, self._period_s - (time.monotonic() - begun)))
