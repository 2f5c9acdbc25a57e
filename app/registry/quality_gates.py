"""What a version must score before an alias may be pointed at it.

Scores are computed elsewhere, before the write. `check` sees, inside the write, that they are the
scores of this gate and of this version: either may change meanwhile.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, insert, select

from app.db.database import Actor, Database
from app.db.schema import alias_gates, gate_scores
from app.db.schema import versions as version_rows
from app.errors import Conflict, GateNotPassed, InvalidRequest, NotFound
from app.registry import scope, versions
from app.registry.types import LATEST, Weights

Result = TypeVar("Result")

MAX_GATES = 10
"""Gates that the aliases of one prefix may have."""
_TRIES = 4

Scores = Mapping[tuple[str, str], float]
"""What is known: (`Gate.measure`, digest of a version) → score."""

NO_SCORES: Scores = {}


@dataclass(frozen=True, kw_only=True)
class QualityGate:
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

    def __init__(self, alias: str, gate: QualityGate, digests: Sequence[str]) -> None:
        super().__init__(
            f"alias '{alias}' has a gate, and version {digests[0][:12]} no score by it",
            param="version",
        )
        self.gate = gate
        self.digests = tuple(digests)


class QualityGates:
    """The gates of a registry's aliases. Any call may raise what the registry's calls may."""

    def __init__(self, catalog: Database, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._catalog, self._clock = catalog, clock

    def get(self, tenant: str, name: str, alias: str) -> QualityGate:
        """The alias's gate; PrefixNotFound, NotFound."""
        scope.check_names(name, alias)
        with self._catalog.read() as connection:
            return _get(connection, scope.get_prefix_id(connection, tenant, name), alias)

    def set(
        self,
        tenant: str,
        name: str,
        alias: str,
        gate: QualityGate,
        *,
        actor: Actor | None = None,
    ) -> QualityGate:
        """Gives the alias a gate, for its next moves; where it points now is left as it is.

        The alias need not exist. `latest` takes none: InvalidRequest. PrefixNotFound; Conflict if
        there are too many.
        """
        scope.check_names(name, alias)
        if alias == LATEST:
            raise InvalidRequest(
                f"'{LATEST}' is whatever was uploaded last and has no gate; give another alias one",
                param="alias",
            )
        with scope.changing(self._catalog, tenant, name, actor) as (connection, _):
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            connection.execute(delete(alias_gates).where(_of(alias_gates, prefix_id, alias)))
            other = gate_scores.c.measure != gate.measure
            connection.execute(delete(gate_scores).where(_of(gate_scores, prefix_id, alias), other))
            mine = select(func.count()).where(alias_gates.c.prefix_id == prefix_id)
            if connection.execute(mine).scalar_one() >= MAX_GATES:
                raise Conflict(f"a prefix has at most {MAX_GATES} gates", param="alias")
            row = {
                "prefix_id": prefix_id,
                "alias": alias,
                "metric": gate.metric,
                "min_score": gate.min_score,
                "examples": [dict(example) for example in gate.examples],
                "updated_at": int(self._clock()),
            }
            connection.execute(insert(alias_gates).values(row))
            return _get(connection, prefix_id, alias)

    def remove(self, tenant: str, name: str, alias: str, *, actor: Actor | None = None) -> None:
        """Takes the alias's gate away; PrefixNotFound, NotFound."""
        scope.check_names(name, alias)
        with scope.changing(self._catalog, tenant, name, actor) as (connection, _):
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            _get(connection, prefix_id, alias)
            for table in (gate_scores, alias_gates):
                connection.execute(delete(table).where(_of(table, prefix_id, alias)))


def _get(connection: Connection, prefix_id: int, alias: str) -> QualityGate:
    found = find(connection, prefix_id, alias)
    if found is None:
        raise NotFound(f"alias '{alias}' has no gate", param="alias")
    return found


def find(connection: Connection, prefix_id: int, alias: str) -> QualityGate | None:
    """The alias's gate, None if it has none."""
    row = connection.execute(
        select(alias_gates).where(_of(alias_gates, prefix_id, alias))
    ).one_or_none()
    if row is None:
        return None
    return QualityGate(
        metric=row.metric,
        min_score=row.min_score,
        examples=row.examples,
        updated_at=row.updated_at,
    )


def check(
    connection: Connection,
    prefix_id: int,
    alias: str,
    weights: Weights,
    scores: Scores,
    *,
    keep: bool,
) -> None:
    """GateNotPassed unless the alias may be moved to `weights`; Unscored if a score is not known.

    Every version needs a score by this gate, also one that the alias serves already: it may have
    come before the gate. Besides `scores`, those with which versions have passed before are known;
    with `keep`, for versions that exist, the new ones are remembered too.
    """
    gate = find(connection, prefix_id, alias)
    if gate is None:
        return
    measure = gate.measure
    before = _remembered(connection, prefix_id, alias, measure)
    given = {digest: scores[measure, digest] for digest in weights if (measure, digest) in scores}
    known = before | given
    unknown = sorted(set(weights) - known.keys())
    if unknown:
        raise Unscored(alias, gate, unknown)
    for digest in sorted(weights):
        if not known[digest] >= gate.min_score:
            raise GateNotPassed(
                f"version {digest[:12]} scores {known[digest]:.6g} by {gate.metric}; alias "
                f"'{alias}' takes {gate.min_score:.6g} or more",
                param="version",
            )
    ids = versions.ids_of(connection, prefix_id, given.keys() - before.keys()) if keep else {}
    common = {"prefix_id": prefix_id, "alias": alias, "measure": measure}
    rows = [
        {**common, "version_id": number, "score": given[digest]} for digest, number in ids.items()
    ]
    if rows:
        connection.execute(insert(gate_scores), rows)


async def write_when_scored(
    write: Callable[..., Awaitable[Result]],
    score_of: Callable[[str, QualityGate], Awaitable[float]],
) -> Result:
    """What `write(scores=…)` answers, once it has the scores that it asks for.

    `score_of` computes the score of a version, named by its digest. Raises what both raise, and
    Conflict if the gate changes again and again meanwhile.
    """
    scores: dict[tuple[str, str], float] = {}
    for _ in range(_TRIES):
        try:
            return await write(scores=dict(scores))
        except Unscored as missing:
            gate, digests = missing.gate, missing.digests
        for digest in digests:
            scores[gate.measure, digest] = await score_of(digest, gate)
    raise Conflict("the alias's gate is being changed; try again", param="alias")


def _remembered(
    connection: Connection, prefix_id: int, alias: str, measure: str
) -> dict[str, float]:
    """Scores by this measure with which versions have passed, by digest."""
    query = (
        select(version_rows.c.digest, gate_scores.c.score)
        .join(version_rows, version_rows.c.id == gate_scores.c.version_id)
        .where(_of(gate_scores, prefix_id, alias), gate_scores.c.measure == measure)
    )
    return {row.digest: row.score for row in connection.execute(query)}


def _of(table: Table, prefix_id: int, alias: str) -> ColumnElement[bool]:
    return and_(table.c.prefix_id == prefix_id, table.c.alias == alias)
