"""Text: the user's text stays text, templates are rendered, no broken character is ever shown."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from app.errors import InvalidRequest
from app.model.frozen import FrozenModel
from app.model.text import Text
from tests.tiny import END_OF_TEXT, train_tokenizer

END = 0
WHOLE = train_tokenizer().backend_tokenizer
VOCABULARY = WHOLE.get_vocab_size()
TEXT = Text(WHOLE.to_str(), vocab_size=VOCABULARY, eos_token_ids=[END])
BYTE_IDS = sorted(WHOLE.get_vocab().values())
PREFIX_SPACE = "\u2581"


def sentencepiece_text() -> tuple[Text, Tokenizer]:
    """A vocabulary as Llama 2 has it: metaspaces, and bytes for what has no token."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [PREFIX_SPACE, *"abcdefgh.,'", "\ufffd", "é", "日", f"{PREFIX_SPACE}a"]
    pieces += [f"{PREFIX_SPACE}cab", "bad", "ab", f"{PREFIX_SPACE}{PREFIX_SPACE}"]
    merges = [("a", "b"), (PREFIX_SPACE, "a"), (PREFIX_SPACE, PREFIX_SPACE)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(PREFIX_SPACE), normalizers.Replace(" ", PREFIX_SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(PREFIX_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Text(tokenizer.to_str(), vocab_size=len(pieces), eos_token_ids=[2]), tokenizer


def wordpiece_text() -> tuple[Text, Tokenizer]:
    """A vocabulary of words and `##` pieces, as BERT has it."""
    pieces = ["[UNK]", "[SEP]", "the", "cat", "sat", "##s", "##ting", "ü", "##ü", "日"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[SEP]"])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return Text(tokenizer.to_str(), vocab_size=len(pieces), eos_token_ids=[1]), tokenizer


SENTENCEPIECE, SENTENCEPIECE_WHOLE = sentencepiece_text()
WORDPIECE, WORDPIECE_WHOLE = wordpiece_text()


def pieces_of(text: Text, ids: list[int]) -> list[str]:
    detokenizer = text.detokenizer()
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


# --- user text ---------------------------------------------------------------------------------


def test_a_special_token_in_user_text_is_ordinary_characters() -> None:
    ids = TEXT.encode(f"a {END_OF_TEXT} b")
    assert END not in ids
    assert TEXT.decode(ids) == f"a {END_OF_TEXT} b"


def test_special_tokens_stay_text_from_many_threads_while_templates_parse_theirs() -> None:
    user, template = f"the {END_OF_TEXT} cat", f"{{input}}{END_OF_TEXT}"
    encoded = TEXT.encode(user)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            encodes = pool.map(TEXT.encode, [user] * 400)
            renders = pool.map(TEXT.render, [template] * 400, [user] * 400)
            assert all(ids == encoded for ids in encodes)
            assert all(ids == [*encoded, END] for ids in renders)
    finally:
        sys.setswitchinterval(interval)
    assert END not in encoded


@given(st.text(max_size=40))
def test_what_is_encoded_decodes_to_itself(text: str) -> None:
    ids = TEXT.encode(text)
    assert END not in ids
    assert TEXT.decode(ids) == text


def test_a_tokenizer_that_truncates_or_pads_is_kept_from_it() -> None:
    tokenizer = Tokenizer.from_str(WHOLE.to_str())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    text = Text(tokenizer.to_str(), vocab_size=VOCABULARY, eos_token_ids=[END])
    long = "the cat sat on the mat and on the dog"
    assert text.decode(text.encode(long)) == long
    assert len(text.encode("the")) < 4


def test_the_first_token_that_a_tokenizer_adds_by_itself_is_added() -> None:
    tokenizer = Tokenizer.from_str(WHOLE.to_str())
    tokenizer.post_processor = TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, END)]
    )
    text = Text(tokenizer.to_str(), vocab_size=VOCABULARY, eos_token_ids=[END])
    assert text.encode("the cat") == [END, *TEXT.encode("the cat")]
    assert text.render(f"{{input}}{END_OF_TEXT}", "the") == [*TEXT.encode("the"), END]


# --- templates ---------------------------------------------------------------------------------


def test_a_template_parses_its_own_special_tokens_only() -> None:
    ids = TEXT.render(f" {{input}} {END_OF_TEXT}", f"x{END_OF_TEXT}")
    assert ids == [*TEXT.encode(f" x{END_OF_TEXT} "), END]
    assert ids.count(END) == 1


def test_text_between_two_special_tokens_is_encoded_as_one_piece() -> None:
    ids = TEXT.render(f"{END_OF_TEXT}th{{input}}at{END_OF_TEXT}{END_OF_TEXT}", "e c")
    assert ids == [END, *TEXT.encode("the cat"), END, END]
    assert len(TEXT.encode("the cat")) < sum(len(TEXT.encode(part)) for part in ("th", "e c", "at"))


@pytest.mark.parametrize("text", ["{input}", "{0}{}{{", "a{input}b{input}", "%s \\1 $1 {input!r}"])
def test_user_text_is_never_a_template(text: str) -> None:
    assert TEXT.decode(TEXT.render("<{input}>", text)) == f"<{text}>"


def test_other_braces_of_a_template_are_characters() -> None:
    assert TEXT.decode(TEXT.render('{"x": "{input}", {y}}', "1")) == '{"x": "1", {y}}'


@pytest.mark.parametrize("template", ["", "no place", "{input}{input}", "{ input }"])
def test_a_template_without_exactly_one_place_is_refused(template: str) -> None:
    with pytest.raises(InvalidRequest, match="exactly once"):
        TEXT.render(template, "x")


def test_the_longest_special_token_wins_where_two_begin() -> None:
    tokenizer = Tokenizer.from_str(WHOLE.to_str())
    tokenizer.add_special_tokens(["<|end", "<|end|>"])
    text = Text(tokenizer.to_str(), vocab_size=VOCABULARY + 2, eos_token_ids=[END])
    assert text.render("{input}<|end|>", "a") == [*TEXT.encode("a"), VOCABULARY + 1]


# --- detokenizing ------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(BYTE_IDS), max_size=30))
def test_byte_level_pieces_join_to_the_whole_for_any_tokens(ids: list[int]) -> None:
    assert "".join(pieces_of(TEXT, ids)) == WHOLE.decode(ids)
    assert TEXT.decode(ids) == WHOLE.decode(ids)


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=20))
def test_no_piece_of_whole_text_holds_a_broken_character(text: str) -> None:
    pieces = pieces_of(TEXT, [WHOLE.token_to_id(c) for c in byte_tokens(text)])
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def byte_tokens(text: str) -> list[str]:
    """The text as one token a byte."""
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [character for piece, _ in pre.pre_tokenize_str(text) for character in piece]


def test_a_character_appears_with_its_last_byte() -> None:
    ids = [WHOLE.token_to_id(piece) for piece in byte_tokens("a€😀")]
    assert pieces_of(TEXT, ids) == ["a", "", "", "€", "", "", "", "😀", ""]


def test_a_character_that_stays_incomplete_is_shown_as_broken_at_the_end() -> None:
    ids = [WHOLE.token_to_id(piece) for piece in byte_tokens("a€")][:-1]
    assert pieces_of(TEXT, ids) == ["a", "", "", "\ufffd"]


def test_special_tokens_have_no_text_in_a_row_but_one_alone() -> None:
    ids = [*TEXT.encode("a"), END, *TEXT.encode("b")]
    assert TEXT.decode(ids) == "ab"
    assert TEXT.token_text(END) == END_OF_TEXT


def test_a_token_alone_spells_out_the_bytes_of_half_characters() -> None:
    first = WHOLE.token_to_id(byte_tokens("€")[0])
    assert TEXT.token_text(first) == "bytes:\\xe2"
    assert TEXT.token_text(TEXT.encode("the")[0]) in "the"


def test_ids_that_the_model_has_and_the_tokenizer_lacks_are_empty() -> None:
    padded = Text(WHOLE.to_str(), vocab_size=VOCABULARY + 64, eos_token_ids=[END])
    ids = [*TEXT.encode("a"), VOCABULARY + 3, *TEXT.encode("b")]
    assert padded.decode(ids) == "ab"
    assert padded.token_text(VOCABULARY + 3) == ""


def test_a_token_beyond_a_gap_in_the_ids_keeps_its_text() -> None:
    content = json.loads(WHOLE.to_str())
    content["model"]["vocab"]["xyz"] = VOCABULARY + 40
    text = Text(json.dumps(content), vocab_size=VOCABULARY + 64, eos_token_ids=[END])
    assert text.decode([VOCABULARY + 40]) == text.token_text(VOCABULARY + 40) == "xyz"


def test_a_token_outside_the_byte_alphabet_stands_for_itself() -> None:
    content = json.loads(WHOLE.to_str())
    content["model"]["vocab"]["a b"] = VOCABULARY
    text = Text(json.dumps(content), vocab_size=VOCABULARY + 1, eos_token_ids=[END])
    assert text.decode([VOCABULARY]) == "a b"


def test_an_added_token_that_is_not_special_is_shown() -> None:
    tokenizer = Tokenizer.from_str(WHOLE.to_str())
    tokenizer.add_tokens([AddedToken("日本 x", special=False)])
    text = Text(tokenizer.to_str(), vocab_size=VOCABULARY + 1, eos_token_ids=[END])
    assert text.decode([*TEXT.encode("a"), VOCABULARY]) == "a日本 x"


@given(st.lists(st.integers(0, SENTENCEPIECE.vocab_size - 1), max_size=30))
def test_sentencepiece_pieces_join_to_the_whole(ids: list[int]) -> None:
    whole = SENTENCEPIECE_WHOLE.decode(ids)
    assert "".join(pieces_of(SENTENCEPIECE, ids)) == whole


@given(st.text(alphabet="ab cdé日€😀.,\n", max_size=25))
def test_sentencepiece_text_streams_without_broken_characters(text: str) -> None:
    ids = SENTENCEPIECE.encode(text)
    pieces = pieces_of(SENTENCEPIECE, ids)
    assert "".join(pieces) == SENTENCEPIECE_WHOLE.decode(ids) == text
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, WORDPIECE.vocab_size - 1), max_size=20))
def test_wordpiece_pieces_join_to_the_whole(ids: list[int]) -> None:
    assert "".join(pieces_of(WORDPIECE, ids)) == WORDPIECE_WHOLE.decode(ids)


def test_families_share_nothing_between_rows(tiny_models: dict[str, FrozenModel]) -> None:
    text = tiny_models["llama"].text
    first, second = text.detokenizer(), text.detokenizer()
    half = [WHOLE.token_to_id(piece) for piece in byte_tokens("€")]
    assert [first.push(half[0]), second.push(half[0])] == ["", ""]
    assert first.flush() == "\ufffd"
    assert [second.push(half[1]), second.push(half[2])] == ["", "€"]
