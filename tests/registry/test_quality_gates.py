"""Gates: what lacks a score or scores too low moves no alias, whoever moves it and when."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app.errors import Conflict, GateNotPassed, InvalidRequest, NotFound, PrefixNotFound
from app.registry import quality_gates
from app.registry.quality_gates import QualityGate, Scores, Unscored
from app.registry.registry import Registry
from app.registry.types import Version
from tests.registry.conftest import Upload

EXAMPLES = [{"input": "a", "output": ["b", "c"]}]
GATE = QualityGate(metric="bleu", min_score=20.0, examples=EXAMPLES)


@pytest.fixture
def versions(registry: Registry, upload: Upload) -> list[Version]:
    """Three versions of `e2e`, the first of them `stable`, which has a gate."""
    made = [upload("e2e", data)[0] for data in (b"one", b"two", b"three")]
    registry.aliases.set("demo", "e2e", "stable", made[0].digest)
    registry.gates.set("demo", "e2e", "stable", GATE)
    return made


def scored(version: Version, score: float, gate: QualityGate = GATE) -> Scores:
    return {(gate.measure, version.digest): score}


def stable(registry: Registry) -> object:
    found = registry.aliases.get("demo", "e2e", "stable")
    return found.split or found.digest


@pytest.mark.usefixtures("versions")
def test_a_gate_is_what_was_set(registry: Registry) -> None:
    found = registry.gates.get("demo", "e2e", "stable")
    assert (found.metric, found.min_score, found.examples) == ("bleu", 20.0, EXAMPLES)
    assert found.measure == GATE.measure
    registry.gates.set(
        "demo", "e2e", "stable", QualityGate(metric="loss", min_score=1, examples=[])
    )
    assert registry.gates.get("demo", "e2e", "stable").metric == "loss"


@pytest.mark.parametrize("score", [20.0, 99.0])
def test_a_version_that_scores_enough_passes(
    registry: Registry, versions: list[Version], score: float
) -> None:
    moved = registry.aliases.set(
        "demo", "e2e", "stable", versions[1].digest, scores=scored(versions[1], score)
    )
    assert moved.digest == versions[1].digest


def test_a_version_that_scores_less_is_refused_with_score_and_bound(
    registry: Registry, versions: list[Version]
) -> None:
    with pytest.raises(GateNotPassed, match=r"scores 19\.5 by bleu; .* takes 20 or more"):
        registry.aliases.set(
            "demo", "e2e", "stable", versions[1].digest, scores=scored(versions[1], 19.5)
        )
    assert stable(registry) == versions[0].digest


def test_a_score_that_is_no_number_passes_nothing(
    registry: Registry, versions: list[Version]
) -> None:
    with pytest.raises(GateNotPassed):
        registry.aliases.set(
            "demo", "e2e", "stable", versions[1].digest, scores=scored(versions[1], float("nan"))
        )


def test_without_a_score_the_write_says_what_is_missing(
    registry: Registry, versions: list[Version]
) -> None:
    with pytest.raises(Unscored) as caught:
        registry.aliases.set("demo", "e2e", "stable", versions[1].digest[:10])
    assert caught.value.digests == (versions[1].digest,)
    assert caught.value.gate.measure == GATE.measure
    assert stable(registry) == versions[0].digest


@pytest.mark.parametrize("other", ["version", "metric", "examples"])
def test_the_score_of_something_else_does_not_count(
    registry: Registry, versions: list[Version], other: str
) -> None:
    known = {
        "version": scored(versions[2], 99),
        "metric": scored(
            versions[1], 99, QualityGate(metric="loss", min_score=0, examples=EXAMPLES)
        ),
        "examples": scored(versions[1], 99, QualityGate(metric="bleu", min_score=20, examples=[])),
    }[other]
    with pytest.raises(Unscored):
        registry.aliases.set("demo", "e2e", "stable", versions[1].digest, scores=known)


def test_a_bound_that_is_raised_meanwhile_counts(
    registry: Registry, versions: list[Version]
) -> None:
    """The score stays true, since only what must be reached has changed."""
    scores = scored(versions[1], 25)
    raised = QualityGate(metric="bleu", min_score=30, examples=EXAMPLES)
    registry.gates.set("demo", "e2e", "stable", raised)
    with pytest.raises(GateNotPassed, match="takes 30 or more"):
        registry.aliases.set("demo", "e2e", "stable", versions[1].digest, scores=scores)


def test_a_split_needs_a_score_of_every_version_that_is_new(
    registry: Registry, versions: list[Version]
) -> None:
    split = {versions[0].digest: 90, versions[1].digest: 10}
    with pytest.raises(Unscored) as caught:
        registry.aliases.set("demo", "e2e", "stable", split)
    assert set(caught.value.digests) == set(split)
    for low, high in (versions[:2], versions[1::-1]):
        scores = {**scored(low, 1), **scored(high, 50)}
        with pytest.raises(GateNotPassed, match=low.digest[:12]):
            registry.aliases.set("demo", "e2e", "stable", split, scores=scores)
    assert stable(registry) == versions[0].digest
    scores = {**scored(versions[0], 20), **scored(versions[1], 50)}
    registry.aliases.set("demo", "e2e", "stable", split, scores=scores)
    assert stable(registry) == split
    halves = {versions[0].digest: 50, versions[1].digest: 50}
    registry.aliases.set("demo", "e2e", "stable", halves)
    registry.aliases.set("demo", "e2e", "stable", versions[1].digest)
    assert stable(registry) == versions[1].digest


def test_a_move_that_changes_nothing_needs_no_score(
    registry: Registry, versions: list[Version]
) -> None:
    assert registry.aliases.set("demo", "e2e", "stable", versions[0].digest)
    registry.gates.remove("demo", "e2e", "stable")
    split = {versions[0].digest: 95, versions[1].digest: 5}
    registry.aliases.set("demo", "e2e", "stable", split)
    registry.gates.set("demo", "e2e", "stable", GATE)
    assert registry.aliases.set("demo", "e2e", "stable", split)


def test_what_an_alias_served_before_its_gate_is_scored_like_any_other(
    registry: Registry, versions: list[Version]
) -> None:
    bad, good = versions[:2]
    registry.gates.remove("demo", "e2e", "stable")
    split = {bad.digest: 95, good.digest: 5}
    registry.aliases.set("demo", "e2e", "stable", split)
    registry.gates.set("demo", "e2e", "stable", GATE)
    with pytest.raises(Unscored):
        registry.aliases.set("demo", "e2e", "stable", bad.digest)
    with pytest.raises(GateNotPassed):
        registry.aliases.set("demo", "e2e", "stable", bad.digest, scores=scored(bad, 19))
    other = {bad.digest: 1, good.digest: 99}
    scores = {**scored(bad, 19), **scored(good, 99)}
    with pytest.raises(GateNotPassed):
        registry.aliases.set("demo", "e2e", "stable", other, scores=scores)
    assert stable(registry) == split
    registry.aliases.set("demo", "e2e", "stable", good.digest, scores=scored(good, 20))
    with pytest.raises(Unscored):
        registry.aliases.set("demo", "e2e", "stable", bad.digest)


@pytest.mark.parametrize("change", ["examples", "metric", "bound", "removed and set"])
def test_what_has_passed_counts_for_this_very_gate_alone(
    registry: Registry, versions: list[Version], change: str
) -> None:
    one, two = versions[:2]
    for version in (two, one):
        registry.aliases.set("demo", "e2e", "stable", version.digest, scores=scored(version, 25))
    registry.aliases.set("demo", "e2e", "stable", two.digest)  # it has passed before
    registry.aliases.set("demo", "e2e", "stable", one.digest)
    others = {
        "examples": QualityGate(metric="bleu", min_score=20, examples=EXAMPLES[:1] * 2),
        "metric": QualityGate(metric="rouge_l", min_score=20, examples=EXAMPLES),
        "bound": QualityGate(metric="bleu", min_score=30, examples=EXAMPLES),
        "removed and set": GATE,
    }
    if change == "removed and set":
        registry.gates.remove("demo", "e2e", "stable")
    registry.gates.set("demo", "e2e", "stable", others[change])
    with pytest.raises(GateNotPassed) as caught:
        registry.aliases.set("demo", "e2e", "stable", two.digest)
    assert isinstance(caught.value, Unscored) == (change != "bound")
    assert stable(registry) == one.digest


def test_what_has_passed_one_aliass_gate_has_not_passed_anothers(
    registry: Registry, versions: list[Version]
) -> None:
    two = versions[1]
    registry.aliases.set("demo", "e2e", "stable", two.digest, scores=scored(two, 25))
    registry.gates.set("demo", "e2e", "other", GATE)
    with pytest.raises(Unscored):
        registry.aliases.set("demo", "e2e", "other", two.digest)


def test_an_upload_of_what_the_alias_serves_part_of_is_scored(
    registry: Registry, upload: Upload, versions: list[Version]
) -> None:
    registry.gates.remove("demo", "e2e", "stable")
    split = {versions[0].digest: 95, versions[1].digest: 5}
    registry.aliases.set("demo", "e2e", "stable", split)
    registry.gates.set("demo", "e2e", "stable", GATE)
    with pytest.raises(Unscored):
        upload("e2e", b"one", alias="stable")
    assert stable(registry) == split


def test_a_rollback_is_never_refused(registry: Registry, versions: list[Version]) -> None:
    registry.aliases.set(
        "demo", "e2e", "stable", versions[1].digest, scores=scored(versions[1], 50)
    )
    assert registry.aliases.rollback("demo", "e2e", "stable").digest == versions[0].digest


def test_an_upload_that_scores_less_leaves_nothing(
    registry: Registry, upload: Upload, versions: list[Version]
) -> None:
    with pytest.raises(Unscored):
        upload("e2e", b"four", alias="stable")
    page = registry.list_versions("demo", "e2e")
    assert {found.digest for found in page.items} == {version.digest for version in versions}
    assert registry.get_prefix("demo", "e2e").latest == versions[2].digest
    version, created = upload("e2e", b"four")
    assert created
    assert registry.aliases.get("demo", "e2e", "latest").digest == version.digest


def test_other_aliases_are_free(registry: Registry, versions: list[Version]) -> None:
    registry.aliases.set("demo", "e2e", "canary", versions[1].digest)
    registry.aliases.set("demo", "e2e", "latest", versions[0].digest)


def test_a_gate_can_stand_before_its_alias(registry: Registry, versions: list[Version]) -> None:
    registry.gates.set("demo", "e2e", "new", GATE)
    with pytest.raises(Unscored):
        registry.aliases.set("demo", "e2e", "new", versions[0].digest)
    with pytest.raises(NotFound):
        registry.aliases.get("demo", "e2e", "new")


def test_without_its_gate_an_alias_is_free(registry: Registry, versions: list[Version]) -> None:
    registry.gates.remove("demo", "e2e", "stable")
    registry.aliases.set("demo", "e2e", "stable", versions[1].digest)
    with pytest.raises(NotFound):
        registry.gates.get("demo", "e2e", "stable")
    with pytest.raises(NotFound):
        registry.gates.remove("demo", "e2e", "stable")


@pytest.mark.usefixtures("versions")
def test_latest_takes_no_gate(registry: Registry) -> None:
    with pytest.raises(InvalidRequest, match="latest"):
        registry.gates.set("demo", "e2e", "latest", GATE)


@pytest.mark.usefixtures("versions")
def test_gates_go_with_their_prefix(registry: Registry, upload: Upload) -> None:
    registry.delete_prefix("demo", "e2e")
    upload("e2e", b"one")
    with pytest.raises(NotFound):
        registry.gates.get("demo", "e2e", "stable")


@pytest.mark.usefixtures("versions")
def test_the_number_of_gates_is_bounded(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_gates, "MAX_GATES", 2)
    registry.gates.set("demo", "e2e", "other", GATE)
    with pytest.raises(Conflict):
        registry.gates.set("demo", "e2e", "third", GATE)
    registry.gates.set("demo", "e2e", "other", GATE)


CALLS: dict[str, Callable[[Registry, str, str], object]] = {
    "get": lambda registry, tenant, name: registry.gates.get(tenant, name, "stable"),
    "set": lambda registry, tenant, name: registry.gates.set(tenant, name, "stable", GATE),
    "remove": lambda registry, tenant, name: registry.gates.remove(tenant, name, "stable"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.usefixtures("versions")
def test_anothers_prefix_does_not_exist(registry: Registry, call: str) -> None:
    messages = []
    for tenant, name in (("other", "e2e"), ("demo", "e3e")):
        with pytest.raises(PrefixNotFound) as caught:
            CALLS[call](registry, tenant, name)
        messages.append(caught.value.message.replace(name, "…"))
    assert messages[0] == messages[1]
    assert registry.gates.get("demo", "e2e", "stable").metric == "bleu"
