"""Beams as rows: the prompt stands once, rows are renamed where they can be, else copied."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.config import EngineConfig
from app.engine.decoding.beam_search import BeamParams
from app.engine.decoding.beam_sequences import BeamSequences
from app.engine.kv_cache.entries import Slot
from app.engine.kv_cache.slots import (
    ClearSlot,
    CopyColumns,
    PoolOperation,
    SlotTable,
    length_classes,
)
from app.engine.request import FinishReason, RowFinished, TextDelta
from app.engine.sequence import TokenSequence
from app.model.frozen import FrozenModel
from tests.engine.harness import SteppedEngine, make_request
from tests.engine.rows import TEXT, make_row
from tests.tiny import random_prefix

PROMPT = tuple(range(10, 50))
A, B, C, D, E, F = (TEXT.encode(letter)[0] for letter in "abcdef")
FAR = -50.0


class Scene:
    """A search over a table, with the tokens that stand in each slot beside it."""

    def __init__(self, num_beams: int, n: int = 1, **sampling: object) -> None:
        self.table = SlotTable(length_classes(300), 100_000)
        self.trunk = make_row(PROMPT, n=n, beam=BeamParams(num_beams), **sampling)
        self.table.place(self.trunk, len(PROMPT))
        self.trunk.num_computed = len(PROMPT)
        self.beams = BeamSequences(self.trunk, TEXT)
        self.contents: dict[Slot, list[int]] = {}

    @property
    def rows(self) -> list[TokenSequence]:
        return self.beams.rows

    def advance(self, *candidates: Sequence[tuple[int, float]]) -> list[PoolOperation]:
        """Advance by the candidates of each row; what that moves, carried out."""
        given = dict(zip(self.rows, candidates, strict=True))
        self.goes_on = self.beams.advance(given, self.table)
        return self.carry_out()

    def compute(self) -> None:
        """Compute every beam's pending token: its columns grow by one."""
        for row in self.rows:
            self.table.make_room(row, row.num_cached + row.num_pending)
        self.carry_out()
        for row in self.rows:
            assert row.num_pending == 1
            columns = self.contents.setdefault(row.slot, [])
            columns[row.num_cached :] = [row.token_ids[row.num_computed]]
            row.num_computed += 1
        self.check()

    def check(self) -> None:
        """Every beam's own columns are the tokens that it has generated and computed."""
        self.table.check_integrity()
        for row in self.rows:
            own = row.token_ids[len(PROMPT) : row.num_computed]
            assert self.contents.get(row.slot, [])[: row.num_cached] == own

    def carry_out(self) -> list[PoolOperation]:
        operations = list(self.table.take_operations())
        for operation in operations:
            if isinstance(operation, CopyColumns):
                source = self.contents.get(operation.source, [])
                kept = self.contents.get(operation.target, [])[operation.columns :]
                self.contents[operation.target] = source[: operation.columns] + kept
        return operations


def searching(*tokens: int) -> Scene:
    """A search whose beams have generated one of `tokens` each, the first one the best."""
    scene = Scene(len(tokens))
    scene.advance([(token, -1.0 - place / 10) for place, token in enumerate(tokens)])
    scene.compute()
    return scene


def test_the_first_tokens_branch_from_a_trunk_without_copies() -> None:
    scene = Scene(3)
    assert scene.advance([(A, -1.0), (B, -2.0), (C, -3.0)]) == []
    assert scene.trunk.is_trunk
    assert scene.trunk not in scene.rows
    assert [row.token_ids for row in scene.rows] == [[*PROMPT, token] for token in (A, B, C)]
    for row in scene.rows:
        assert row.segments == (scene.trunk,)
        assert (row.num_cached, row.num_pending) == (0, 1)
        assert scene.table.capacities[row.slot.length_class] == 32
    assert len({row.slot for row in scene.rows}) == 3


def test_beams_that_go_on_as_they_are_move_nothing() -> None:
    scene = searching(A, B)
    before = list(scene.rows)
    assert scene.advance([(C, -0.1), (D, FAR)], [(E, -0.1), (F, FAR)]) == []
    assert scene.rows == before
    assert [row.token_ids[-2:] for row in scene.rows] == [[A, C], [B, E]]


def test_beams_that_change_places_are_renamed() -> None:
    scene = searching(A, B, C)
    before = list(scene.rows)
    moved = scene.advance([(D, -3.0), (E, FAR)], [(D, -2.0), (E, FAR)], [(D, -0.1), (E, FAR)])
    assert moved == []
    assert scene.rows == before[::-1]
    assert [row.token_ids[-2:] for row in scene.rows] == [[C, D], [B, D], [A, D]]


def test_a_beam_that_goes_on_twice_is_copied_over_one_that_ends() -> None:
    scene = searching(A, B, C)
    first, second, third = scene.rows
    [copy] = scene.advance([(D, FAR), (E, FAR)], [(D, -0.1), (E, -0.2)], [(D, -0.3), (E, FAR)])
    assert scene.rows == [second, first, third]
    assert copy == CopyColumns(first, second.slot, first.slot, 1)
    assert [row.token_ids[-2:] for row in scene.rows] == [[B, D], [B, E], [C, D]]
    scene.compute()


def test_one_beam_that_takes_all_is_copied_over_all_others() -> None:
    scene = searching(A, B, C)
    scene.advance([(D, -0.1), (E, FAR)], [(D, -0.1), (E, FAR)], [(D, -0.1), (E, FAR)])
    scene.compute()
    _, _, last = rows = list(scene.rows)
    best = [(A, -0.1), (B, -0.2), (C, -0.3)]
    copies = scene.advance([(D, FAR)], [(D, FAR)], best)
    assert scene.rows[0] is last
    assert {copy.target for copy in copies} == {row.slot for row in rows[:2]}
    assert all(copy.source == last.slot and copy.columns == 2 for copy in copies)
    assert [row.token_ids[-3:] for row in scene.rows] == [[C, D, token] for token in (A, B, C)]
    scene.compute()


@given(
    num_beams=st.integers(1, 5),
    steps=st.integers(1, 45),
    neighbours=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_whatever_the_search_decides_every_beam_keeps_its_own_columns(
    num_beams: int, steps: int, neighbours: int, seed: int
) -> None:
    """Also as slots grow, and as rows beside them come and go."""
    draw = random.Random(seed)
    scene = Scene(num_beams, max_tokens=60, ignore_eos=True)
    others = [make_row(generated=[1]) for _ in range(neighbours)]
    for row in others:
        scene.table.place(row, draw.choice((10, 40)))
    scene.advance([(token, -draw.random()) for token in range(1, 2 * num_beams + 1)])
    scene.compute()
    for _ in range(steps):
        if others and draw.random() < 0.2:
            scene.table.release(others.pop())
        rows = [
            sorted(
                ((draw.randrange(1, 300), -3 * draw.random()) for _ in range(2 * num_beams)),
                key=lambda item: -item[1],
            )
            for _ in scene.rows
        ]
        copies = [item for item in scene.advance(*rows) if isinstance(item, CopyColumns)]
        assert sum(item.occupant in scene.rows for item in copies) <= num_beams
        assert len(scene.rows) == len(set(scene.rows)) == num_beams
        scene.compute()


# --- results -----------------------------------------------------------------------------------


def results_of(scene: Scene) -> list[tuple[str, RowFinished]]:
    assert not scene.goes_on
    events = scene.beams.results()
    deltas = [event for event in events if isinstance(event, TextDelta)]
    ends = [event for event in events if isinstance(event, RowFinished)]
    assert [event.index for event in events] == [index for end in ends for index in [end.index] * 2]
    return [(delta.text, end) for delta, end in zip(deltas, ends, strict=True)]


def test_results_come_best_first_with_their_scores() -> None:
    scene = Scene(3, n=2, max_tokens=2)
    scene.advance([(A, -1.0), (B, -1.5), (C, -9.0)])
    scene.advance([(C, -2.0), (D, -9.0)], [(E, -0.5), (D, -9.0)], [(D, -9.0)])
    [(first, end), (second, other)] = results_of(scene)
    assert (first, second) == ("be", "ac")
    assert (end.index, end.score, end.reason) == (0, -1.0, FinishReason.LENGTH)
    assert (other.index, other.score, other.num_tokens) == (1, -1.5, 2)
    assert end.cumulative_logprob is None


def test_the_end_token_is_no_text_and_a_reason() -> None:
    scene = Scene(1, max_tokens=5, logprobs=0)
    scene.advance([(A, -1.0), (B, -2.0)])
    scene.advance([(0, -0.5), (B, -9.0)])
    [(text, end)] = results_of(scene)
    assert (text, end.reason, end.num_tokens) == ("a", FinishReason.STOP, 2)
    assert end.cumulative_logprob == -1.5


def test_a_stop_string_cuts_a_result() -> None:
    scene = Scene(1, max_tokens=4, stop=("cd",), logprobs=0)
    for token in (A, C, D, B):
        scene.advance([(token, -1.0), (E, FAR)])
    [(text, end)] = results_of(scene)
    assert (text, end.reason, end.stop_string) == ("a", FinishReason.STOP, "cd")
    assert (end.num_tokens, end.cumulative_logprob) == (3, -3.0)


def test_a_request_without_beams_is_no_search() -> None:
    with pytest.raises(ValueError, match="does not search by beams"):
        BeamSequences(make_row(), TEXT)


# --- memory ------------------------------------------------------------------------------------


@pytest.fixture(params=["gpt2", "bart"])
def model(
    request: pytest.FixtureRequest, tiny_gpt2: FrozenModel, tiny_bart: FrozenModel
) -> FrozenModel:
    return tiny_gpt2 if request.param == "gpt2" else tiny_bart


class Watched(SteppedEngine):
    """Keeps all that was copied between slots, and the most columns that slots ever had."""

    def __init__(self, model: FrozenModel, patch: pytest.MonkeyPatch) -> None:
        super().__init__(model, EngineConfig(), patch)
        self.operations: list[PoolOperation] = []
        self.most_reserved = self.most_columns = 0
        taking = self.engine.table.take_operations

        def keep() -> tuple[PoolOperation, ...]:
            operations = taking()
            self.operations.extend(operations)
            return operations

        patch.setattr(self.engine.table, "take_operations", keep)

    def step(self) -> None:
        super().step()
        table = self.engine.table
        columns = sum(
            table.capacities[item.slot.length_class] for slots in table.rows for item in slots
        )
        self.most_columns = max(self.most_columns, columns)
        self.most_reserved = max(self.most_reserved, table.reserved_columns)


@pytest.mark.parametrize("length", [20, 90], ids=["copied prefix", "shared prefix"])
def test_memory_grows_with_what_beams_generate_and_not_with_what_they_continue(
    model: FrozenModel, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = random_prefix(model, length, position_offset=0)
    most: dict[int, tuple[int, int]] = {}
    for num_beams in (2, 8):
        stepped = Watched(model, monkeypatch)
        beam = BeamParams(num_beams)
        stepped.add(make_request("it", range(70), 30, [prefix], beam=beam))
        stepped.run()
        most[num_beams] = stepped.most_reserved, stepped.most_columns
        stepped.check_empty()
    # 32 columns hold the 30 tokens of a beam
    assert most[8][0] - most[2][0] == 6 * 32
    assert most[8][1] - most[2][1] == 6 * 32
    reservation = stepped.engine.table.reservation
    prompt = 70 if model.encoder_decoder is None else 1
    fixed = [prompt + length] if length == 20 else [prompt, length]
    assert most[2][0] == 2 * 32 + sum(map(reservation, fixed))


def test_reordering_copies_generated_columns_alone_and_never_the_trunk(
    model: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = Watched(model, monkeypatch)
    prefix = random_prefix(model, 20, position_offset=0)
    beam = BeamParams(6)
    stepped.add(make_request("it", range(70), 40, [prefix], beam=beam))
    trunk, copied = None, 0
    while not stepped.engine.scheduler.idle:
        stepped.step()
        rows = stepped.rows
        trunk = next((row for row in rows if row.is_trunk), trunk)
        beams = [row for row in rows if not row.is_trunk]
        copies = [item for item in stepped.operations if isinstance(item, CopyColumns)]
        stepped.operations.clear()
        for copy in copies:
            assert copy.occupant is not trunk
            assert trunk is None or trunk.slot not in (copy.source, copy.target)
            if beams:
                assert copy.columns <= beams[0].num_generated
        copied += len(copies)
    assert copied > 10
    assert trunk is not None


def test_what_beams_and_trunk_held_is_free_when_the_search_ends(
    model: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trunk's place is cleared: nothing was ever sampled from it after its prompt."""
    stepped = Watched(model, monkeypatch)
    stepped.add(make_request("it", range(30), 5, beam=BeamParams(3)))
    stepped.run()
    stepped.check_empty()
    stepped.step()
    assert any(isinstance(item, ClearSlot) for item in stepped.operations)
