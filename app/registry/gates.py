"""What a version must score before an alias may be pointed at it.

Scores are computed elsewhere, before the write; here it is checked inside the write that they are
those of this gate and of this version. Works inside a transaction that the caller holds. Knows
nothing about how scores are computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from app.errors import Conflict, GateNotPassed
from app.registry import aliases
from app.registry.schema import alias_gates

MAX_GATES = 10
"""Gates that the aliases of one prefix may have."""

Scores = Mapping[tuple[str, str], float]
"""What is known: (`Gate.measure`, digest of a version) → score."""

NO_SCORES: Scores = {}


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The least score, by a metric and on examples, each with an `input` and its `output`s."""

    metric: str
    min_score: float
    examples: Sequence[Mapping[str, Any]] = field(hash=False)
    updated_at: int = 0

    @property
    def measure(self) -> str:
        """What is measured, whatever must be reached: a version's score by it never changes."""
        content = [self.metric, [dict(example) for example in self.examples]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Unscored(GateNotPassed):
    """Versions whose score by this gate must be known before the alias can be moved."""

    def __init__(self, alias: str, gate: Gate, digests: Sequence[str]) -> None:
        super().__init__(
            f"alias '{alias}' has a gate, and version {digests[0][:12]} no score by it",
            param="version",
        )
        self.gate = gate
        self.digests = tuple(digests)


def find(connection: Connection, prefix_id: int, alias: str) -> Gate | None:
    """The alias's gate, None if it has none."""
    row = connection.execute(select(alias_gates).where(_of(prefix_id, alias))).one_or_none()
    if row is None:
        return None
    return Gate(
        metric=row.metric,
        min_score=row.min_score,
        examples=row.examples,
        updated_at=row.updated_at,
    )


def put(connection: Connection, prefix_id: int, alias: str, gate: Gate, *, now: int) -> None:
    """Gives the alias this gate, instead of one that it may have; Conflict if there are too many.

    The alias need not exist.
    """
    remove(connection, prefix_id, alias)
    mine = select(func.count()).where(alias_gates.c.prefix_id == prefix_id)
    if connection.execute(mine).scalar_one() >= MAX_GATES:
        raise Conflict(f"a prefix has at most {MAX_GATES} gates", param="alias")
    row = {
        "prefix_id": prefix_id,
        "alias": alias,
        "metric": gate.metric,
        "min_score": gate.min_score,
        "examples": [dict(example) for example in gate.examples],
        "updated_at": now,
    }
    connection.execute(insert(alias_gates).values(row))


def remove(connection: Connection, prefix_id: int, alias: str) -> bool:
    """Takes the alias's gate away; whether it had one."""
    return connection.execute(delete(alias_gates).where(_of(prefix_id, alias))).rowcount > 0


def check(
    connection: Connection,
    prefix_id: int,
    alias: str,
    digests: Collection[str],
    scores: Scores,
) -> None:
    """GateNotPassed unless the alias may be moved to `digests`; Unscored if a score is not known.

    What the alias serves already needs no score.
    """
    gate = find(connection, prefix_id, alias)
    if gate is None:
        return
    added = sorted(set(digests) - set(aliases.served_by(connection, prefix_id, alias)))
    measure = gate.measure
    unknown = [digest for digest in added if (measure, digest) not in scores]
    if unknown:
        raise Unscored(alias, gate, unknown)
    for digest in added:
        score = scores[measure, digest]
        if not score >= gate.min_score:
            raise GateNotPassed(
                f"version {digest[:12]} scores {score:.6g} by {gate.metric}; alias '{alias}' "
                f"takes {gate.min_score:.6g} or more",
                param="version",
            )


def _of(prefix_id: int, alias: str) -> Any:
    return (alias_gates.c.prefix_id == prefix_id) & (alias_gates.c.alias == alias)
