"""Transcripts: stop strings wherever token borders are, nothing shown too early or too late."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.request import FinishReason, SamplingParams, TextDelta
from app.engine.sequence import OutputText
from app.model.text import Text
from tests.tiny import train_tokenizer

END = 0


def letters_text() -> tuple[Text, dict[str, int]]:
    """A vocabulary of the pieces that tests speak in: letters, pairs and triples of a, b and c."""
    content = json.loads(train_tokenizer().backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    for first in "abc":
        for second in "abc":
            for piece in (first + second, *(first + second + third for third in "abc")):
                vocabulary.setdefault(piece, len(vocabulary))
    text = Text(json.dumps(content), vocab_size=len(vocabulary), eos_token_ids=[END])
    return text, vocabulary


TEXT, IDS = letters_text()
PIECES = sorted(piece for piece in IDS if 1 <= len(piece) <= 3 and set(piece) <= set("abc"))


def run(pieces: list[str], max_tokens: int = 100, **sampling: object) -> tuple[OutputText, list]:
    """Push pieces until the row ends; the output and what each push showed."""
    output = OutputText(0, SamplingParams(max_tokens, **sampling), TEXT)
    deltas: list[TextDelta | None] = []
    for piece in pieces:
        if output.finish_reason is not None:
            break
        token = END if piece == "" else IDS[piece]
        deltas.append(output.push(token, None, ()))
    return output, deltas


def texts_of(deltas: list[TextDelta | None]) -> list[str]:
    return [delta.text if delta else "" for delta in deltas]


def naive(
    pieces: list[str], stops: list[str], max_tokens: int, min_tokens: int
) -> tuple[str, str | None, int]:
    """Text, stop string and number of tokens, character by character: the first stop to end."""
    text = ""
    for count, piece in enumerate(pieces[:max_tokens], 1):
        for character in piece:
            text += character
            ended = [stop for stop in stops if text.endswith(stop)]
            if ended and count >= min_tokens:
                stop = max(ended, key=len)
                return text[: -len(stop)], stop, count
    return text, None, min(len(pieces), max_tokens)


@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
    max_tokens=st.integers(1, 12),
    min_tokens=st.integers(0, 5),
)
def test_text_is_the_whole_cut_at_the_first_stop_wherever_token_borders_are(
    pieces: list[str], stops: list[str], max_tokens: int, min_tokens: int
) -> None:
    text, stop, count = naive(pieces, stops, max_tokens, min_tokens)
    padded = pieces + ["b"] * (max_tokens - len(pieces))
    if stop is None:
        text, stop, count = naive(padded, stops, max_tokens, min_tokens)
    output, deltas = run(padded, max_tokens=max_tokens, stop=tuple(stops), min_tokens=min_tokens)
    assert "".join(texts_of(deltas)) == text
    assert output.stop_string == stop
    assert output.num_tokens == count
    expected = FinishReason.LENGTH if stop is None else FinishReason.STOP
    assert output.finish_reason == expected


@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_no_more_is_held_back_than_could_still_become_a_stop(
    pieces: list[str], stops: list[str]
) -> None:
    output, deltas = run(pieces, stop=tuple(stops))
    if output.finish_reason is not None:
        return
    text, sent = "".join(pieces), "".join(texts_of(deltas))
    assert text.startswith(sent)
    held = text[len(sent) :]
    assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_stop_string_across_tokens_is_never_shown_in_part() -> None:
    output, deltas = run(["a", "b", "c", "a"], stop=("bca",))
    assert texts_of(deltas) == ["a", "", "", ""]
    assert (output.finish_reason, output.stop_string) == (FinishReason.STOP, "bca")


def test_what_turns_out_not_to_be_a_stop_is_shown_at_once() -> None:
    _, deltas = run(["a", "b", "b", "a"], stop=("abc",))
    assert texts_of(deltas) == ["", "", "abb", ""]


def test_what_is_held_back_at_the_end_is_shown() -> None:
    output, deltas = run(["c", "a", "b"], max_tokens=3, stop=("abc",))
    assert texts_of(deltas) == ["c", "", "ab"]
    assert output.finish_reason == FinishReason.LENGTH


def test_what_is_held_back_when_the_text_ends_is_shown() -> None:
    output, deltas = run(["a", "b", ""], stop=("abc",))
    assert texts_of(deltas) == ["", "", "ab"]
    assert (output.finish_reason, output.stop_string) == (FinishReason.STOP, None)
    assert output.num_tokens == 3


def test_the_first_stop_to_end_wins_and_of_two_that_end_together_the_longer() -> None:
    assert run(["aab"], stop=("b", "aab"))[0].stop_string == "aab"
    output, deltas = run(["abc"], stop=("abc", "b"))
    assert (output.stop_string, texts_of(deltas)) == ("b", ["a"])


def test_a_stop_before_min_tokens_is_text() -> None:
    output, deltas = run(["a", "b", "c", "ab"], stop=("ab",), min_tokens=4)
    assert "".join(texts_of(deltas)) == "abc"
    assert output.stop_string == "ab"
    assert output.num_tokens == 4


def test_the_end_token_ends_the_row_and_has_no_text() -> None:
    output, deltas = run(["a", "", "b"])
    assert texts_of(deltas) == ["a", ""]
    assert output.finish_reason == FinishReason.STOP
    assert [token.token_id for delta in deltas if delta for token in delta.tokens] == [
        IDS["a"],
        END,
    ]


def test_an_ignored_end_token_ends_nothing() -> None:
    output, _ = run(["a", "", "b"], max_tokens=3, ignore_eos=True)
    assert output.finish_reason == FinishReason.LENGTH


def test_without_new_tokens_the_row_ends_and_shows_nothing() -> None:
    output, deltas = run(["a"], max_tokens=0)
    assert deltas == [None]
    assert (output.finish_reason, output.num_tokens) == (FinishReason.LENGTH, 0)


def test_a_character_in_halves_appears_whole_and_a_lone_half_as_broken() -> None:
    halves = ["â", "Ĥ", "¬"]  # the bytes of € as byte-level vocabularies write them
    _, deltas = run([*halves, halves[0]], max_tokens=4)
    assert texts_of(deltas) == ["", "", "€", "\ufffd"]


def test_a_broken_character_may_complete_a_stop_string_at_the_end() -> None:
    output, deltas = run(["a", "â"], max_tokens=2, stop=("\ufffd",))
    assert "".join(texts_of(deltas)) == "a"
    assert (output.finish_reason, output.stop_string) == (FinishReason.STOP, "\ufffd")


def test_every_token_is_reported_once_though_its_text_lags() -> None:
    _, deltas = run(["a", "b", "b", "a"], max_tokens=4, stop=("abc",))
    tokens = [[token.token_id for token in delta.tokens] for delta in deltas if delta]
    assert tokens == [[IDS["a"], IDS["b"], IDS["b"]], [IDS["a"]]]


def test_with_logprobs_every_token_is_reported_at_once_with_its_text_and_alternatives() -> None:
    output = OutputText(2, SamplingParams(4, logprobs=2, stop=("ab",)), TEXT)
    delta = output.push(IDS["a"], -0.5, ((IDS["a"], -0.5), (IDS["b"], -1.5)))
    assert delta is not None
    assert (delta.index, delta.text) == (2, "")
    [token] = delta.tokens
    assert (token.token_id, token.text, token.logprob) == (IDS["a"], "a", -0.5)
    assert token.top == ((IDS["a"], "a", -0.5), (IDS["b"], "b", -1.5))
    output.push(IDS["c"], -1.0, ())
    assert output.cumulative_logprob == pytest.approx(-1.5)


def test_a_whole_text_comes_once_with_all_its_tokens() -> None:
    tokens = TEXT.encode("the quick brown fox")
    pieces = OutputText(0, SamplingParams(len(tokens)), TEXT)
    whole = OutputText(0, SamplingParams(len(tokens)), TEXT, whole=True)
    parts = [pieces.push(token, None, ()) for token in tokens]
    once = [whole.push(token, None, ()) for token in tokens]
    assert once[:-1] == [None] * (len(tokens) - 1)
    last = once[-1]
    assert last is not None
    assert last.text == "".join(part.text for part in parts if part is not None)
    assert [score.token_id for score in last.tokens] == tokens
    assert whole.finish_reason is pieces.finish_reason


def test_a_whole_text_ends_before_its_stop_string() -> None:
    whole = OutputText(0, SamplingParams(50, stop=("ick",)), TEXT, whole=True)
    deltas = [whole.push(token, None, ()) for token in TEXT.encode("the quick brown fox")]
    found = [delta for delta in deltas if delta is not None]
    assert found[0].text == "the qu"
    assert whole.stop_string == "ick"
