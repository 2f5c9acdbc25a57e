"""A catalog in which very many users of one tenant have something each.

Rows are written in bulk, just as uploads, jobs and workers would have left them: each user has a
prefix of one version, a training file, and a job on it with one checkpoint, which waits or has
succeeded, and stands behind the next user's prefix. All contents differ, and none is in the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Table, create_engine, insert, select, text

from app.db.database import Database
from app.db.schema import (
    alias_gates,
    alias_history,
    aliases,
    contents,
    gate_scores,
    job_checkpoints,
    job_events,
    prefixes,
    tenants,
    training_files,
    training_jobs,
    versions,
)

TABLES = (
    prefixes, versions, aliases, alias_history, alias_gates, gate_scores, contents,
    training_files, training_jobs, job_events, job_checkpoints,
)  # fmt: skip
"""The tables that grow with the users."""

_FIRST = 1_000_000
"""Numbers of rows that no other rows of a test have."""
_BATCH = 10_000
_EVENTS = 2


def user_of(number: int) -> str:
    """A user's name."""
    return f"user-{number:06d}"


def fill(catalog: Database, tenant: str, count: int, fingerprint: str, *, first: int = 0) -> None:
    """Gives `count` users, from the number `first` on, what the module says.

    The planner knows of the new rows.
    """
    engine = create_engine(catalog.engine.url)  # without the catalog's time limits of statements
    with engine.begin() as connection:
        owner = connection.scalar(select(tenants.c.owner).where(tenants.c.id == tenant))
        for start in range(first, first + count, _BATCH):
            users = range(start, min(first + count, start + _BATCH))
            for table, rows in _rows(users, tenant, str(owner), fingerprint):
                _insert(connection, table, rows)
        connection.execute(text("ANALYZE"))
    engine.dispose()


def count_rows(connection: Connection) -> int:
    """The rows of all tables that grow with the users."""
    return sum(
        connection.scalar(text(f"SELECT count(*) FROM {table.name}")) or 0 for table in TABLES
    )


def _insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    connection.execute(insert(table), rows)


def _digest(number: int, kind: str) -> str:
    return f"{kind}{number:063x}"


def _rows(
    users: range, tenant: str, owner: str, fingerprint: str
) -> Iterator[tuple[Table, list[dict[str, Any]]]]:
    """The rows of some users by table, parents first."""
    ids = {number: _FIRST + number for number in users}
    version = {
        **{"owner": owner, "file_nbytes": 1, "length": 5, "lengths": {"decoder": 5}},
        **{"position_offset": 0, "dtype": "float16", "nbytes": 1, "base_model": "tiny"},
        **{"base_fingerprint": fingerprint, "decoding": {}, "provenance": {}, "pinned": False},
    }
    file = {
        **{"tenant_id": tenant, "filename": "train.jsonl", "purpose": "fine-tune", "nbytes": 1},
        **{"examples": 1, "pairs": 1, "sha256": "0" * 64, "owner": owner, "created_at": 1},
    }
    job = {
        **{"tenant_id": tenant, "base_model": "tiny", "method": "prefix"},
        **{"base_fingerprint": fingerprint, "hyperparameters": {}, "asked": {}, "suffix": "tone"},
        **{"seed": 1, "attempt": 1, "losses": 0, "events": _EVENTS, "step": 9, "total_steps": 9},
        **{"trained_tokens": 9, "created_at": 1, "finished_at": 2},
    }
    alias = {"name": "latest", "revision": 1, "updated_at": 1}
    moved = {"alias": "latest", "reason": "upload", "undoable": True, "changed_at": 1}
    gate = {"alias": "latest", "metric": "bleu", "min_score": 1.0, "examples": [], "updated_at": 1}
    event = {"created_at": 1, "level": "info", "type": "message", "message": "step"}
    saved = {"step": 9, "created_at": 1, "metrics": {}, "owner": owner, "nbytes": 1}

    def each(facts: dict[str, Any], **varying: Any) -> list[dict[str, Any]]:
        return [
            {**facts, **{name: make(number) for name, make in varying.items()}} for number in users
        ]

    number_of = ids.__getitem__
    yield (
        prefixes,
        each({"tenant_id": tenant, "created_at": 1}, id=number_of, name=user_of, user=user_of),
    )
    yield versions, each(
        {**version, "created_at": 1},
        id=number_of, prefix_id=number_of, digest=lambda n: _digest(n, "a"),
    )  # fmt: skip
    yield aliases, each(alias, prefix_id=number_of, version_id=number_of)
    yield alias_history, each(moved, prefix_id=number_of, digest=lambda n: _digest(n, "a"))
    yield alias_gates, each(gate, prefix_id=number_of)
    yield gate_scores, each(
        {"alias": "latest", "measure": "0" * 64, "score": 2.0},
        prefix_id=number_of, version_id=number_of,
    )  # fmt: skip
    yield training_files, each(
        file,
        id=number_of, public_id=lambda n: f"file-{n:024x}", user=user_of,
        digest=lambda n: _digest(n, "b"),
    )  # fmt: skip
    yield training_jobs, each(
        job,
        id=number_of, public_id=lambda n: f"ftjob-{n:024x}", user=user_of,
        training_file=lambda n: f"file-{n:024x}",
        validation_file=lambda n: f"file-{n + 1:024x}",
        on_prefix=lambda n: f"{user_of(n + 1)}@{_digest(n + 1, 'a')}",
        status=lambda n: "queued" if n % 2 else "succeeded",
    )  # fmt: skip
    for sequence in range(1, _EVENTS + 1):
        yield job_events, each({**event, "sequence": sequence}, job_id=number_of)
    yield job_checkpoints, each(saved, job_id=number_of, digest=lambda n: _digest(n, "c"))
    for kind in "abc":
        noted = {"owner": owner, "state": "present", "generation": "0" * 16, "touched_at": 1}
        yield contents, each(noted, digest=lambda n, kind=kind: _digest(n, kind))
