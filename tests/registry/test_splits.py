"""Choosing a version of a split: by weight, the same for a user, few moved by a change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from app.errors import InvalidRequest
from app.registry.splits import MAX_VERSIONS, MAX_WEIGHT, Split, check_split
from app.registry.types import Resolved

USERS = [f"user-{number}" for number in range(20_000)]
DIGESTS = [f"{number:064x}" for number in range(5)]


def version(digest: str, name: str = "e2e") -> Resolved:
    return Resolved(
        tenant="demo",
        name=name,
        owner="f00",
        digest=digest,
        base_model=None,
        base_fingerprint=None,
        created_at=0,
    )


def split(weights: dict[str, int], name: str = "e2e") -> Split:
    versions = tuple(version(digest, name) for digest in weights)
    return Split(versions, tuple(weights.values()))


def choices(chooser: Split, users: Sequence[str | None] = USERS) -> list[str]:
    return [chooser.choose("demo", "stable", user).digest for user in users]


def spread(count: int, share: float) -> float:
    """Six standard deviations of how many of `count` an event of this probability takes."""
    return 6 * (count * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("weights", [(95, 5), (1, 1), (1, 2, 7), (9999, 1), (3, 3, 3, 3, 3)])
def test_users_are_shared_out_by_weight(weights: tuple[int, ...]) -> None:
    found = Counter(choices(split(dict(zip(DIGESTS, weights, strict=False)))))
    for digest, weight in zip(DIGESTS, weights, strict=False):
        share = weight / sum(weights)
        assert abs(found[digest] - share * len(USERS)) <= spread(len(USERS), share) + 1


def test_requests_without_a_user_are_shared_out_by_weight() -> None:
    found = Counter(choices(split({DIGESTS[0]: 3, DIGESTS[1]: 1}), [None] * 20_000))
    assert abs(found[DIGESTS[0]] - 15_000) <= spread(20_000, 0.75)


def test_a_user_stays_whatever_the_order_and_scale_of_the_versions() -> None:
    before = choices(split({DIGESTS[0]: 3, DIGESTS[1]: 1}))
    assert choices(split({DIGESTS[1]: 1, DIGESTS[0]: 3})) == before
    assert choices(split({DIGESTS[0]: 300, DIGESTS[1]: 100})) == before


def test_a_change_of_weights_moves_no_user_more_than_it_must() -> None:
    before = choices(split({DIGESTS[0]: 95, DIGESTS[1]: 5}))
    after = choices(split({DIGESTS[0]: 80, DIGESTS[1]: 20}))
    moved = Counter(pair for pair in zip(before, after, strict=True) if pair[0] != pair[1])
    assert moved.keys() == {(DIGESTS[0], DIGESTS[1])}
    assert abs(moved.total() - 0.15 * len(USERS)) <= spread(len(USERS), 0.15)


def test_a_version_that_joins_or_leaves_moves_only_its_own_users() -> None:
    two = choices(split({DIGESTS[0]: 60, DIGESTS[1]: 30}))
    three = choices(split({DIGESTS[0]: 60, DIGESTS[1]: 30, DIGESTS[2]: 10}))
    assert {after for before, after in zip(two, three, strict=True) if before != after} == {
        DIGESTS[2]
    }
    assert abs(Counter(three)[DIGESTS[2]] - 0.1 * len(USERS)) <= spread(len(USERS), 0.1)


def test_tenants_prefixes_and_aliases_draw_apart() -> None:
    even = split({DIGESTS[0]: 1, DIGESTS[1]: 1})
    base = choices(even)
    others = [
        [even.choose("acme", "stable", user).digest for user in USERS],
        [even.choose("demo", "latest", user).digest for user in USERS],
        choices(split({DIGESTS[0]: 1, DIGESTS[1]: 1}, name="other")),
    ]
    for other in others:
        same = sum(one == two for one, two in zip(base, other, strict=True))
        assert abs(same - len(USERS) / 2) <= spread(len(USERS), 0.5)


@pytest.mark.parametrize("user", ["", "a\0b", "\ud800", "é" * 500])
def test_any_text_is_a_user(user: str) -> None:
    even = split({DIGESTS[0]: 1, DIGESTS[1]: 1})
    assert len({even.choose("demo", "stable", user).digest for _ in range(50)}) == 1


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {DIGESTS[0]: 1},
        {f"{number:064x}": 1 for number in range(MAX_VERSIONS + 1)},
        {DIGESTS[0]: 0, DIGESTS[1]: 1},
        {DIGESTS[0]: -5, DIGESTS[1]: 1},
        {DIGESTS[0]: MAX_WEIGHT + 1, DIGESTS[1]: 1},
        {DIGESTS[0]: True, DIGESTS[1]: 1},
        {DIGESTS[0]: 0.5, DIGESTS[1]: 1},
    ],
    ids=str,
)
def test_a_split_out_of_bounds_is_refused(weights: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_split(weights)
    assert refused.value.param == "split"
