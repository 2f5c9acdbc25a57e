"""A PostgreSQL server of a test's own, which it may freeze, kill and start again.

With `TEST_DATABASE_URL` set, tests that harm no server use databases there instead.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import make_url

_PORT = 5432  # names the socket's file alone: no server listens on TCP
_START_S = 30


class PostgresServer:
    """A cluster in a folder of its own, reached through a unix socket."""

    def __init__(self) -> None:
        self._binaries = _find_binaries()
        # the socket's path must stay short, and the server's user must reach it
        self._root = Path(tempfile.mkdtemp(prefix="pg-"))
        self._data = self._root / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self._user = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(self._root, "postgres", "postgres")
        initdb = [str(self._binaries / "initdb"), "-D", str(self._data), "-A", "trust"]
        subprocess.run(
            [*initdb, "-U", "postgres", "--no-sync", "-E", "UTF8"],
            check=True,
            capture_output=True,
            cwd=self._root,
            **self._user,
        )

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        options = ["-k", str(self._root), "-p", str(_PORT), "-c", "listen_addresses="]
        fast = ["-c", "shared_buffers=16MB", "-c", "fsync=off", "-c", "max_connections=60"]
        log = (self._root / "log").open("ab")
        self._process = subprocess.Popen(
            [str(self._binaries / "postgres"), "-D", str(self._data), *options, *fast],
            stdout=log,
            stderr=log,
            cwd=self._root,
            **self._user,
        )
        log.close()
        deadline = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self._conninfo("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)

    def make_database(self) -> str:
        """A new, empty database; its SQLAlchemy URL."""
        name = f"t{secrets.token_hex(6)}"
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]  # ours
        return f"postgresql+psycopg://postgres@/{name}?host={self._root}&port={_PORT}"

    def freeze(self) -> None:
        """Stops every process of the server where it stands: it accepts and never answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets a frozen server go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends the server at once, as a crash would."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the server and removes its folder."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self.kill()
        shutil.rmtree(self._root, ignore_errors=True)

    def _conninfo(self, database: str) -> str:
        return f"host={self._root} port={_PORT} user=postgres dbname={database}"

    def _signal(self, number: signal.Signals) -> None:
        # the postmaster goes on last and stops first, so that it starts no child anew
        pids = self._pids()
        for pid in reversed(pids) if number is signal.SIGCONT else pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _pids(self) -> list[int]:
        """The server's processes: the postmaster, then its children."""
        try:
            postmaster = int((self._data / "postmaster.pid").read_text().split()[0])
        except (FileNotFoundError, IndexError):
            return []
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        return [postmaster, *map(int, children)]


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A private server for the block."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@contextmanager
def postgres_url() -> Iterator[str]:
    """A new database: on the server of `TEST_DATABASE_URL`, or on a private one."""
    shared = os.environ.get("TEST_DATABASE_URL")
    if shared is None:
        with postgres_server() as server:
            yield server.make_database()
        return
    url = make_url(shared).set(drivername="postgresql")
    name = f"t{secrets.token_hex(6)}"
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]  # ours
        try:
            made = url.set(drivername="postgresql+psycopg", database=name)
            yield made.render_as_string(hide_password=False)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]


def _find_binaries() -> Path:
    """Where `postgres` and `initdb` are; Debian keeps them out of the path."""
    found = shutil.which("postgres")
    candidates = [Path(found).parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in candidates:
        if (folder / "initdb").exists():
            return folder
    raise RuntimeError(
        "PostgreSQL's `postgres` and `initdb` are not installed; install them, or set "
        "TEST_DATABASE_URL to a server where databases may be made"
    )
