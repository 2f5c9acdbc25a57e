"""100 writers and 50 readers on ten names over two replicas of one catalog.

Under every etag one writer wins, so the states of a name form one line; the history tells the same
line; and no reader sees a state that was replaced before it began (after a second, for what a
replica keeps of a reference).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from app.db.database import Database, migrate
from app.errors import PreconditionFailed, Unavailable
from app.prefix.reference import PrefixReference
from app.registry.registry import Registry
from app.registry.storage.local import FolderStore
from app.registry.types import VersionInfo
from tests.postgres_server import postgres_url

NAMES = [f"name-{number}" for number in range(10)]
VERSIONS = 4
WRITERS, READERS = 100, 50
WINS = 1
"""Moves that each writer makes before it stops; each waits for the disk."""
PAUSE_S = 0.05
"""Between two reads of a reader: they are many, and the writers are to come to their turn."""
FOLLOWED_S = 1.0


@dataclass(frozen=True)
class Move:
    """One move that a writer won: from the state with `old` to that with `new`."""

    old: str
    new: str
    digest: str


@dataclass
class Register:
    """What is known of one alias: its moves, and since when at the latest each state was gone."""

    first: str
    moves: list[Move] = field(default_factory=list)
    gone: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def won(self, move: Move) -> None:
        """Takes down a move that has ended."""
        with self.lock:
            self.moves.append(move)
            self.gone[move.old] = time.monotonic()

    def line(self) -> list[Move]:
        """The moves in the order in which one led to the next; fails unless they are one line."""
        by_old = {move.old: move for move in self.moves}
        assert len(by_old) == len(self.moves), "two writers won under one etag"
        line, state = [], self.first
        while state in by_old:
            line.append(by_old[state])
            state = line[-1].new
        assert len(line) == len(self.moves), "the states are not one line"
        return line


class Contest:
    """Writers and readers that begin together."""

    def __init__(self, replicas: list[Registry]) -> None:
        self.replicas = replicas
        self.digests = [_upload(replicas[0], name) for name in NAMES]
        self.registers = {
            name: Register(replicas[0].aliases.set("demo", name, "stable", digests[0]).etag)
            for name, digests in zip(NAMES, self.digests, strict=True)
        }
        self.start = threading.Barrier(WRITERS + READERS)
        self.done = threading.Event()
        self.wrong: list[str] = []
        self.reads = 0

    def run(self) -> None:
        """Everybody at once; errors of threads are `wrong`."""
        writers = [self.thread(self.write, number) for number in range(WRITERS)]
        readers = [self.thread(self.read, number) for number in range(READERS)]
        for thread in writers:
            thread.join()
        self.done.set()
        for thread in readers:
            thread.join()

    def thread(self, work: Callable[[int], None], number: int) -> threading.Thread:
        def body() -> None:
            self.start.wait()
            try:
                work(number)
            except Exception as error:
                self.wrong.append(f"{work.__name__} {number}: {error!r}")

        thread = threading.Thread(target=body)
        thread.start()
        return thread

    def write(self, number: int) -> None:
        """Moves to another version, or to a split, under the etag that it has read."""
        name, digests = NAMES[number % 10], self.digests[number % 10]
        book = self.replicas[number // 10 % 2].aliases
        wins = 0
        while wins < WINS:
            seen = book.get("demo", name, "stable")
            digest = digests[(digests.index(seen.digest) + 1 + number % 3) % VERSIONS]
            other = digests[(digests.index(digest) + 1) % VERSIONS]
            try:
                if number % 2:
                    split = {digest: 60 + number, other: 5}
                    made = book.set("demo", name, "stable", split, if_match=seen.etag)
                else:
                    made = book.set("demo", name, "stable", digest, if_match=seen.etag)
            except (PreconditionFailed, Unavailable):
                continue
            wins += 1
            if made.etag != seen.etag:
                self.registers[name].won(Move(seen.etag, made.etag, made.digest))

    def read(self, number: int) -> None:
        """Reads the state and resolves the name, and remembers what was gone before."""
        name = NAMES[number % 10]
        replica, register = self.replicas[number // 10 % 2], self.registers[name]
        while not self.done.is_set():
            began = time.monotonic()
            try:
                seen = replica.aliases.get("demo", name, "stable")
                if register.gone.get(seen.etag, began) < began:
                    self.wrong.append(f"{name}: a state that was gone")
                replica.resolve("demo", PrefixReference(name, "stable"), str(number))
            except Unavailable:  # so many threads may wait too long for a connection
                continue
            self.reads += 1
            time.sleep(PAUSE_S)


def _upload(registry: Registry, name: str) -> list[str]:
    digests = []
    for number in range(VERSIONS):
        data = f"{name} {number}".encode()
        digest = hashlib.sha256(data).hexdigest()
        info = VersionInfo(
            digest=digest, length=1, position_offset=0, dtype="float16", nbytes=len(data)
        )
        with registry.stage() as staged:
            staged.write(data)
            registry.add_version("demo", name, info, staged.path)
        digests.append(digest)
    return digests


@pytest.fixture(params=["sqlite", "postgresql"])
def replicas(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Registry]]:
    """Two registries on one catalog and one store, as two servers have them."""
    if request.param == "sqlite":
        yield from _opened(f"sqlite:///{tmp_path}/catalog.sqlite3", tmp_path)
        return
    with postgres_url() as url:
        migrate(url)
        yield from _opened(url, tmp_path)


def _opened(url: str, folder: Path) -> Iterator[list[Registry]]:
    opened = [Registry(Database(url), FolderStore(folder / "store")) for _ in range(2)]
    opened[0].ensure_tenant("demo")
    yield opened
    for registry in opened:
        registry.close()


@pytest.mark.timeout(900)  # how long its writers take is the machine's to say
def test_one_winner_per_etag_one_line_of_states_no_reader_in_the_past(
    replicas: list[Registry],
) -> None:
    contest = Contest(replicas)
    contest.run()
    assert contest.wrong == []
    assert contest.reads > READERS
    for name, register in contest.registers.items():
        line = register.line()
        assert len(line) > WRITERS // 20
        final = [replica.aliases.get("demo", name, "stable") for replica in replicas]
        assert final[0] == final[1]
        assert final[0].etag == line[-1].new
        told = [change.digest for change in replicas[1].aliases.history("demo", name, "stable")]
        assert told[::-1][1:] == [move.digest for move in line]


def test_what_one_replica_moves_the_other_serves_within_a_second(
    replicas: list[Registry],
) -> None:
    [digests, *_] = [_upload(replicas[0], "followed")]
    reference = PrefixReference("followed", "stable")
    register: list[tuple[str, float]] = []
    wrong: list[str] = []
    done = threading.Event()

    def follow(replica: Registry) -> None:
        while not done.is_set():
            known = [digest for digest, since in list(register) if since < _now() - FOLLOWED_S]
            place = len(known)
            served = replica.resolve("demo", reference).digest
            if served not in [digest for digest, _ in register[max(0, place - 1) :]]:
                wrong.append(served)

    replicas[0].aliases.set("demo", "followed", "stable", digests[0])
    register.append((digests[0], _now()))
    threads = [threading.Thread(target=follow, args=(replica,)) for replica in replicas]
    for thread in threads:
        thread.start()
    for turn in range(1, 12):
        time.sleep(0.3)
        digest = digests[turn % VERSIONS]
        # before it is moved: a reader may see it as soon as it is there
        register.append((digest, float("inf")))
        replicas[turn % 2].aliases.set("demo", "followed", "stable", digest)
        register[-1] = (digest, _now())
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def _now() -> float:
    return time.monotonic()
