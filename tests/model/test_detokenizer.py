"""Detokenizers of every kind of vocabulary: what a reply adds is what transformers says it adds."""

from __future__ import annotations

import time
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from app.model.detokenizer import BROKEN, CleanedDetokenizer, clean_up
from app.model.text import Text, TokenizerFacts
from tests.vocabularies import BLANK, KINDS


@cache
def whole_of(kind: str) -> PreTrainedTokenizerFast:
    return KINDS[kind]()


@cache
def text_of(kind: str) -> Text:
    whole = whole_of(kind)
    facts = TokenizerFacts(
        bos=whole.bos_token, eos=whole.eos_token, cleans_up=whole.clean_up_tokenization_spaces
    )
    return Text(
        whole.backend_tokenizer.to_str(),
        vocab_size=len(whole),
        eos_token_ids=[whole.eos_token_id],
        facts=facts,
    )


def said(kind: str, ids: list[int]) -> str:
    """What transformers makes of tokens."""
    return whole_of(kind).decode(ids, skip_special_tokens=True)


def spelled(kind: str, prompt: list[int], reply: list[int]) -> list[str]:
    detokenizer = text_of(kind).detokenizer(prompt)
    return [*(detokenizer.push(token) for token in reply), detokenizer.flush()]


def tokens(kind: str) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, len(whole_of(kind)) - 1), max_size=70)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(data=st.data())
def test_the_pieces_of_any_tokens_join_to_what_transformers_decodes(
    kind: str, data: st.DataObject
) -> None:
    reply = data.draw(tokens(kind))
    assert "".join(spelled(kind, [], reply)) == said(kind, reply) == text_of(kind).decode(reply)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(data=st.data())
def test_a_reply_is_what_it_adds_to_the_text_of_its_prompt(kind: str, data: st.DataObject) -> None:
    prompt, reply = data.draw(tokens(kind)), data.draw(tokens(kind))
    before, whole = said(kind, prompt), said(kind, prompt + reply)
    added = "".join(spelled(kind, prompt, reply))
    if whole.startswith(before):
        assert before + added == whole
    else:  # the reply has changed the prompt's last character: what is new is shown
        assert whole.endswith(added)
        assert before.startswith(whole[: len(whole) - len(added)])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_where_a_row_begins_makes_no_difference(kind: str, data: st.DataObject) -> None:
    ids = data.draw(tokens(kind))
    splits = data.draw(st.integers(0, len(ids)))
    before = said(kind, ids[:splits])
    if said(kind, ids).startswith(before):
        assert before + "".join(spelled(kind, ids[:splits], ids[splits:])) == said(kind, ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_starts_rise_and_stay_within_the_text(kind: str, data: st.DataObject) -> None:
    ids = data.draw(tokens(kind))
    text, starts = text_of(kind).spell(ids)
    assert text == said(kind, ids)
    assert starts == sorted(starts)
    assert all(0 <= start <= len(text) for start in starts)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"cleaned-wordpiece", "char-bpe"}))
def test_start_is_where_a_tokens_text_begins(kind: str) -> None:
    text = text_of(kind)
    ids = text.encode("the quick fox jumps over the cat and on the mat")[1:]
    whole, starts = text.spell(ids)
    for token_id, start in zip(ids[1:], starts[1:], strict=True):
        assert whole[start:].startswith(text.token_text(token_id))


@pytest.mark.parametrize("kind", ["llama", "metaspace", "unigram", "wordpiece", "words"])
def test_a_word_behind_a_prompt_keeps_its_blank(kind: str) -> None:
    text = text_of(kind)
    prompt = text.encode("the")
    word = text.encode("the", add_special_tokens=False)
    assert "".join(spelled(kind, prompt, word)) == " the"
    assert "".join(spelled(kind, [], word)) == "the"
    assert "".join(map(text.token_text, word)) == " the"


def test_a_word_and_its_piece_are_two_texts() -> None:
    text = text_of("llama")
    vocabulary = whole_of("llama").get_vocab()
    assert text.token_text(vocabulary[BLANK + "the"]) == " the"
    assert text.token_text(vocabulary["t"]) == "t"


@pytest.mark.parametrize(
    ("kind", "token", "shown"),
    [
        ("llama", "<0xE2>", "bytes:\\xe2"),
        ("llama", "<0x0A>", "\n"),
        ("llama", "</s>", "</s>"),
        ("byte-level", "\u0120", " "),
        ("byte-level", "\u00f0", "bytes:\\xf0"),
    ],
)
def test_bytes_that_are_no_character_are_spelled_out(kind: str, token: str, shown: str) -> None:
    assert text_of(kind).token_text(whole_of(kind).get_vocab()[token]) == shown


def test_bytes_of_a_character_appear_when_no_later_byte_can_spoil_them() -> None:
    vocabulary = whole_of("llama").get_vocab()
    smile = [vocabulary[f"<0x{byte:02X}>"] for byte in "😀".encode()]
    word = vocabulary[BLANK + "the"]
    assert spelled("llama", [word], [*smile, word]) == ["", "", "", "", "😀 the", ""]
    assert spelled("llama", [word], smile) == ["", "", "", "", "😀"]
    assert spelled("llama", [word, *smile[:2]], [*smile[2:], word]) == ["", "", "😀 the", ""]


def test_a_prompt_that_ends_within_a_character_is_completed() -> None:
    vocabulary = whole_of("byte-level").get_vocab()
    first, second, third = (vocabulary[token] for token in ("\u00e2", "\u0124", "\u00ac"))
    a = vocabulary["a"]
    assert spelled("byte-level", [a, first], [second, third, a]) == ["", "€", "a", ""]
    assert spelled("byte-level", [a, first], [a]) == ["a", ""]
    assert spelled("byte-level", [a, first], []) == [""]


def test_a_long_run_of_bytes_is_shown_in_parts() -> None:
    vocabulary = whole_of("llama").get_vocab()
    long = "日本語テキスト" * 20
    ids = [vocabulary[f"<0x{byte:02X}>"] for byte in long.encode()]
    pieces = spelled("llama", [vocabulary[BLANK + "the"]], ids)
    assert "".join(pieces) == long
    assert sum(map(bool, pieces)) > 5
    assert not any(BROKEN in piece for piece in pieces)
    broken = [ids[1]] * 500
    assert "".join(spelled("llama", [], broken)) == BROKEN * 500 == said("llama", broken)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_of_a_token_does_not_grow_with_the_row(kind: str) -> None:
    vocabulary = whole_of(kind).get_vocab()
    hard = next((vocabulary[name] for name in ("<0xE2>", "\u00e2") if name in vocabulary), 5)

    def seconds(count: int) -> float:
        detokenizer = text_of(kind).detokenizer()
        started = time.thread_time()
        for _ in range(count):
            detokenizer.push(hard)
        return time.thread_time() - started

    few = min(seconds(500) for _ in range(3))
    assert min(seconds(4000) for _ in range(3)) < 8 * 4 * few


@given(st.text(alphabet="ab .,?!'ntmsver", max_size=60), st.integers(1, 5))
def test_cleaning_piece_by_piece_is_cleaning_the_whole(text: str, size: int) -> None:
    class Letters:
        start = 0

        def push(self, token_id: int) -> str:
            return text[token_id : token_id + size]

        def flush(self) -> str:
            return ""

    cleaned = CleanedDetokenizer(Letters(), "")
    pieces = [cleaned.push(at) for at in range(0, len(text), size)]
    assert "".join(pieces) + cleaned.flush() == clean_up(text)
