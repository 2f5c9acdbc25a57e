"""Runs operations of the registry in children that die, or whose calls fail, at the N-th call.

    python crash_driver.py kill|ENOSPC-once|ENOSPC-forever|… FOLDER [OPERATION…]
    python crash_driver.py prepare|do|check FOLDER OPERATION

The first form counts the calls to the operating system that the registry makes itself, and every
statement, begin and commit of SQLite; after each child it looks at the state as a restarted server
would see it, and prints one JSON object: operation → {"points": N, "violations": [...]}. The second
form is for killing from outside: `do` does one operation on a copy of what `prepare` made, `check`
prints what is wrong with what it left.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sqlalchemy import text

from app.errors import InsufficientStorage, PolyprefixError, Unavailable
from app.registry.open_registry import open_registry
from app.registry.registry import Registry
from app.registry.shipped.import_ import seed
from app.registry.shipped.manifest import add_to_manifest, read_manifest
from app.registry.types import Version, VersionInfo

TENANT = "demo"
OS_CALLS = (
    "open",
    "write",
    "fsync",
    "rename",
    "unlink",
    "mkdir",
    "utime",
    "stat",
    "listdir",
    "chmod",
)
SQL_CODES = {"ENOSPC": "SQLITE_FULL", "EIO": "SQLITE_IOERR_FSYNC", "EINTR": "SQLITE_BUSY"}
State = dict[str, Any]


class Faults:
    """Counts calls and, from the N-th on, kills the process or makes the call fail."""

    def __init__(self, kind: str, at: int) -> None:
        self.kind, _, self.extent = kind.partition("-")
        self.at = at
        self.calls = 0
        self.armed = False

    def hit(self, sql: bool, torn: Callable[[], Any] | None = None) -> None:
        if not self.armed:
            return
        self.calls += 1
        if self.calls < self.at or (self.calls > self.at and self.extent == "once"):
            return
        if self.kind == "kill":
            if torn is not None:
                torn()
            os.kill(os.getpid(), signal.SIGKILL)
        if sql:
            fault = sqlite3.OperationalError("injected")
            fault.sqlite_errorname = SQL_CODES[self.kind]
            raise fault
        code = getattr(errno, self.kind)
        raise OSError(code, os.strerror(code))

    def install(self) -> None:
        for name in OS_CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        faults = self

        class Cursor(sqlite3.Cursor):
            def execute(self, *args: Any) -> Any:
                faults.hit(sql=True)
                return super().execute(*args)

        class Connection(sqlite3.Connection):
            def cursor(self, factory: Any = Cursor) -> Any:
                return super().cursor(factory)

            def execute(self, *args: Any) -> Any:
                faults.hit(sql=True)
                return super().execute(*args)

            def commit(self) -> None:
                faults.hit(sql=True)
                super().commit()

        connect = sqlite3.dbapi2.connect
        patch.object(sqlite3.dbapi2, "connect", partial(connect, factory=Connection)).start()

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            torn = None
            if name == "write":  # a write that the crash cuts in two
                torn = lambda: real(args[0], bytes(args[1])[: len(args[1]) // 2])  # noqa: E731
            self.hit(False, torn)
            return real(*args, **kwargs)

        return call


def info_of(data: bytes) -> VersionInfo:
    digest = hashlib.sha256(data).hexdigest()
    return VersionInfo(
        digest=digest, length=5, position_offset=5, dtype="float32", nbytes=len(data)
    )


def upload(registry: Registry, name: str, data: bytes, alias: str | None = None) -> Version:
    with registry.stage() as staged:
        staged.write(data[:100])
        staged.write(data[100:])
        return registry.add_version(TENANT, name, info_of(data), staged.path, alias=alias)[0]


ONE, TWO, NEW, SHIPPED, LATER = (bytes([i]) * 3000 for i in range(5))
DIGEST = {data: info_of(data).digest for data in (ONE, TWO, NEW, SHIPPED, LATER)}


def prepare(folder: Path) -> None:
    """A store with history: two versions, a moved alias, a shared content, garbage, a manifest."""
    registry = open_registry(f"sqlite:///{folder}/data/catalog.sqlite3", folder / "store")
    registry.ensure_tenant(TENANT)
    upload(registry, "e2e", ONE, "stable")
    upload(registry, "e2e", TWO, "stable")
    upload(registry, "other", ONE)
    upload(registry, "gone", b"garbage")
    registry.delete_prefix(TENANT, "gone")
    registry.close()
    (folder / "file").write_bytes(SHIPPED)
    add_to_manifest(folder / "store", "web", info_of(SHIPPED), folder / "file", alias="stable")
    (folder / "file").write_bytes(LATER)


OPERATIONS: dict[str, Callable[[Registry, Path], object]] = {
    "upload-new-name": lambda registry, _: upload(registry, "new", NEW, "stable"),
    "upload-new-version": lambda registry, _: upload(registry, "e2e", NEW, "stable"),
    "upload-same-again": lambda registry, _: upload(registry, "e2e", ONE),
    "upload-content-of-garbage": lambda registry, _: upload(registry, "new", b"garbage"),
    "delete-version": lambda registry, _: registry.delete_version(TENANT, "e2e", DIGEST[ONE]),
    "delete-prefix": lambda registry, _: registry.delete_prefix(TENANT, "e2e"),
    "set-alias": lambda registry, _: registry.aliases.set(TENANT, "e2e", "fast", DIGEST[ONE]),
    "rollback": lambda registry, _: registry.aliases.rollback(TENANT, "e2e", "stable"),
    "pin": lambda registry, _: registry.pin(TENANT, "e2e", DIGEST[ONE]),
    "collect-garbage": lambda registry, _: registry.collect_garbage(0),
    "collect-and-upload-it-again": lambda registry, _: (
        registry.collect_garbage(0),
        upload(registry, "new", b"garbage"),
    ),
    "seed": lambda registry, folder: seed(registry, folder / "store"),
    "add-to-manifest": lambda _, folder: add_to_manifest(
        folder / "store", "web", info_of(LATER), folder / "file", alias="stable"
    ),
    "first-start": lambda registry, _: registry.ensure_tenant(TENANT),
}


def look(registry: Registry, folder: Path) -> State:
    """Everything that a client can see, but for times and etags."""
    state: State = {"manifest": {}}
    for name, shipped in read_manifest(folder / "store").prefixes.items():
        digests = [version.digest for version in shipped.versions]
        state["manifest"][name] = [digests, shipped.aliases]
    for record in registry.list_prefixes(TENANT, None, 100).items:
        versions = registry.list_versions(TENANT, record.name, None, 100).items
        for version in versions:
            with registry.open_content(TENANT, version) as file:
                found = hashlib.sha256(file.read()).hexdigest()
            if found != version.digest:
                raise PolyprefixError(f"{record.name}: content is not what its digest says")
        history = {
            alias: [[change.digest, change.reason] for change in changes]
            for alias in record.aliases
            for changes in [registry.aliases.history(TENANT, record.name, alias)]
        }
        listed = [[version.digest, version.pinned] for version in versions]
        state[record.name] = [listed, dict(record.aliases), history]
    return state


def reopen(folder: Path) -> Registry:
    return open_registry(f"sqlite:///{folder}/data/catalog.sqlite3", folder / "store")


def staged_files(folder: Path) -> list[str]:
    return [path.name for path in (folder / "store" / ".staging").glob("*")]


def inspect(registry: Registry, folder: Path) -> State:
    """The state as a restarted server sees it; PolyprefixError if something is damaged."""
    left = staged_files(folder)
    if left:
        raise PolyprefixError(f"temporary files are left: {left}")
    for path in (folder / "store").glob("*/*.safetensors"):
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.stem:
            raise PolyprefixError(f"{path} is not whole")
    with registry.catalog.read() as connection:
        if connection.scalar(text("PRAGMA integrity_check")) != "ok":
            raise PolyprefixError("the database is damaged")
        if connection.execute(text("PRAGMA foreign_key_check")).all():
            raise PolyprefixError("rows refer to what is not there")
    return look(registry, folder)


def child(folder: Path, operation: str, faults: Faults, pipe: int) -> None:
    """Does the operation under faults, then without them; reports how it went through the pipe."""
    report: dict[str, Any] = {}
    write = os.write
    faults.install()
    first_start = operation == "first-start"
    faults.armed = first_start
    try:
        registry = reopen(folder)
        faults.armed = True
        OPERATIONS[operation](registry, folder)
        report["outcome"] = "done"
    except PolyprefixError as error:
        report["outcome"] = type(error).__name__
    except Exception as error:
        report["outcome"] = f"unexpected {error!r}"
    faults.armed = False
    report["calls"] = faults.calls
    report["left"] = staged_files(folder)
    write(pipe, json.dumps(report).encode())
    os._exit(0)


def run_child(folder: Path, operation: str, kind: str, at: int) -> dict[str, Any]:
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        child(folder, operation, Faults(kind, at), writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        report = pipe.read()
    os.waitpid(process, 0)
    return json.loads(report) if report else {"outcome": "killed", "calls": at, "left": []}


ALLOWED = {
    "kill": {"killed", "done"},
    "ENOSPC": {InsufficientStorage.__name__, "done"},
    "EIO": {InsufficientStorage.__name__, "done"},
    "EINTR": {Unavailable.__name__, "done"},
}


def judge(work: Path, operation: str, states: tuple[State, State], outcome: str) -> list[str]:
    """What is wrong with what a child left, as a restarted server finds it."""
    before, after = states
    wrong = []
    registry = reopen(work)
    try:
        found = inspect(registry, work)
        if found not in (before, after):
            wrong.append("neither the old nor the new state")
        if outcome == "done" and found != after:
            wrong.append("what was acknowledged is lost")
        if found == before != after:
            OPERATIONS[operation](registry, work)
        registry.collect_garbage(0)
        if inspect(registry, work) != after:
            wrong.append("the operation does not succeed afterwards")
    except (PolyprefixError, OSError, sqlite3.Error) as error:
        wrong.append(repr(error))
    finally:
        registry.close()
    return wrong


def check_point(
    work: Path, template: Path, operation: str, kind: str, at: int, states: tuple[State, State]
) -> tuple[bool, list[str]]:
    """One child and what it left; whether the fault was reached, and what is wrong."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(template, work)
    report = run_child(work, operation, kind, at)
    outcome = report["outcome"]
    wrong = judge(work, operation, states, outcome)
    if outcome not in ALLOWED[kind.partition("-")[0]]:
        wrong.append(f"ended as {outcome}")
    if kind.endswith("once") and outcome != "done" and report["left"]:
        wrong.append("a temporary file is left until the next start")
    reached = outcome == "killed" or (kind != "kill" and report["calls"] >= at)
    return reached, [f"{operation}, {kind} at call {at}: {what}" for what in wrong]


def check_operation(folder: Path, operation: str, kind: str) -> dict[str, Any]:
    template, work = folder / "template", folder / "work"
    shutil.rmtree(folder, ignore_errors=True)
    template.mkdir(parents=True)
    if operation != "first-start":
        prepare(template)
    shutil.copytree(template, work, dirs_exist_ok=True)
    registry = reopen(work)
    before = look(registry, work)
    OPERATIONS[operation](registry, work)
    states = before, look(registry, work)
    registry.close()
    (folder / "states").write_text(json.dumps(states))
    if kind == "prepare":
        return {}
    violations: list[str] = []
    at, reached = 0, True
    while reached:
        at += 1
        reached, wrong = check_point(work, template, operation, kind, at, states)
        violations += wrong
    return {"points": at - 1, "violations": violations}


def main() -> None:
    kind, folder, *operations = sys.argv[1:]
    if kind == "do":
        registry = reopen(Path(folder) / "work")
        OPERATIONS[operations[0]](registry, Path(folder) / "work")
        return
    if kind == "check":
        states = json.loads((Path(folder) / "states").read_text())
        wrong = judge(Path(folder) / "work", operations[0], states, "killed")
        sys.stdout.write(json.dumps(wrong) + "\n")
        return
    report = {
        operation: check_operation(Path(folder), operation, kind)
        for operation in operations or OPERATIONS
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
