"""Default templates speak each tokenizer's own special tokens; odd ones are pointed out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from app.datasets.example import Example
from app.errors import InvalidRequest
from app.evaluation.text_pairs import continued_target, default_template, token_pairs
from app.model.load import load_model
from app.model.text import Text, TokenizerFacts
from app.training.recipe import Recipe
from app.training.session import Session, TrainingJob
from tests.tiny import llama_like
from tests.vocabularies import KINDS


def text_of(kind: str, vocab_size: int | None = None) -> Text:
    whole = KINDS[kind]()
    return Text(
        whole.backend_tokenizer.to_str(),
        vocab_size=vocab_size or len(whole),
        eos_token_ids=[whole.eos_token_id],
        facts=TokenizerFacts(bos=whole.bos_token, eos=whole.eos_token),
    )


@pytest.mark.parametrize(
    ("kind", "template"),
    [
        ("byte-level", " {input} <|endoftext|>"),
        ("llama", "<s>{input}</s>"),
        ("metaspace", "<s> {input} </s>"),
        ("wordpiece", "<s> {input} </s>"),
    ],
)
def test_a_default_template_is_in_the_tokenizers_own_tokens(kind: str, template: str) -> None:
    text = text_of(kind)
    assert default_template(text, has_encoder=False) == template
    assert text.unknown_specials(template) == []
    ids = text.render(template, "the cat")
    assert ids[-1] == text.end_id
    if "<s>" in template:
        assert ids[0] == text.encode("the")[0]


def test_llamas_pairs_hold_each_special_token_once_and_no_blank_twice() -> None:
    text = text_of("llama")
    template = default_template(text, has_encoder=False)
    [pair] = token_pairs([Example("the cat", ("the fox",), 1)], text, template, room=50, source="")
    start, end = 1, 2
    assert list(pair.prompt_ids) == [start, *text.encode("the cat", add_special_tokens=False), end]
    assert list(pair.target_ids) == [*text.encode("the fox", add_special_tokens=False), end]
    assert text.decode(pair.target_ids) == "the fox"


def test_targets_end_with_the_tokenizers_own_end_token() -> None:
    whole = KINDS["byte-level"]()
    ends = [295, whole.eos_token_id]
    text = Text(
        whole.backend_tokenizer.to_str(),
        vocab_size=len(whole),
        eos_token_ids=ends,
        facts=TokenizerFacts(eos=whole.eos_token),
    )
    assert continued_target(text, "the")[-1] == whole.eos_token_id
    other = Text(whole.backend_tokenizer.to_str(), vocab_size=len(whole), eos_token_ids=[295, 7])
    assert continued_target(other, "the")[-1] == 295


@pytest.mark.parametrize(
    ("template", "odd"),
    [
        ("{input}<|endoftext|>", ["<|endoftext|>"]),
        ("<s>{input}</s>", []),
        ("[CLS]{input}[SEP]<s>", ["[CLS]", "[SEP]"]),
        ("<b>{input}</b> [1] |x|", []),
        ("<|im_start|>user {input}<|im_end|><|im_end|>", ["<|im_start|>", "<|im_end|>"]),
    ],
)
def test_special_tokens_that_the_tokenizer_lacks_are_found(template: str, odd: list[str]) -> None:
    assert text_of("llama").unknown_specials(template) == odd


def test_a_token_beyond_the_embedding_is_named_with_its_line() -> None:
    text = text_of("llama", vocab_size=len(KINDS["llama"]()) - 1)
    last = KINDS["llama"]().convert_ids_to_tokens(text.vocab_size).replace("\u2581", " ")
    with pytest.raises(InvalidRequest, match=rf"d\.jsonl:7: .*whose id is {text.vocab_size}"):
        token_pairs([Example(f"x{last}", ("y",), 7)], text, "{input}", room=90, source="d.jsonl")


def test_training_points_out_a_template_of_another_tokenizer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "llama"
    tokenizer = KINDS["llama"]()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(**llama_like(vocab_size=len(tokenizer), eos_token_id=2, bos_token_id=1))
    LlamaForCausalLM(config).save_pretrained(folder)
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"input": "the cat", "target": "the fox"}) + "\n")

    def session(template: str | None) -> Session:
        place = tmp_path / "checkpoint"
        return Session(TrainingJob(str(folder), data, Recipe(length=2), place, template=template))

    assert session(None).template == "<s>{input}</s>"
    assert "is no special token" not in caplog.text
    session(" {input} <|endoftext|>")
    assert "<|endoftext|> is not a special token of this tokenizer" in caplog.text
    assert load_model(str(folder), device="cpu").text.end_id == 2
