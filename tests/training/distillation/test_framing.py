"""The teacher reads the text in the form that its tokenizer knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from app.model.frozen import FrozenModel
from app.model.text import Text
from app.training.distillation.framing import framing_of
from tests.tiny import train_tokenizer


@pytest.fixture
def chat(tmp_path: Path) -> Text:
    """A tokenizer with ChatML's special tokens."""
    tokenizer: PreTrainedTokenizerFast = train_tokenizer()
    marks = [AddedToken(mark, special=True) for mark in ("<|im_start|>", "<|im_end|>")]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.save_pretrained(tmp_path)
    content = (tmp_path / "tokenizer.json").read_text()
    assert "<|im_start|>" in json.dumps(json.loads(content)["added_tokens"])
    return Text(content, vocab_size=330, eos_token_ids=[321])


def test_a_chat_model_reads_the_text_as_the_systems_message(chat: Text) -> None:
    framing = framing_of(chat)
    assert framing.chat
    part = chat.encode("The text.")
    whole = "<|im_start|>system\nThe text.<|im_end|>\n"
    assert list(framing.context_ids(chat, part)) == chat.encode(whole, parse_special=True)
    asked = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert chat.render(framing.prompt, "Why?") == chat.encode(asked, parse_special=True)


def test_another_model_reads_the_text_and_an_empty_line(tiny_gpt2: FrozenModel) -> None:
    encoder = tiny_gpt2.text
    framing = framing_of(encoder)
    assert not framing.chat
    part = encoder.encode("The text.")
    assert encoder.decode(framing.context_ids(encoder, part)) == "The text.\n\n"
    assert framing.prompt == "{input}"


def test_given_templates_replace_the_usual_ones(tiny_gpt2: FrozenModel) -> None:
    encoder = tiny_gpt2.text
    framing = framing_of(encoder, "Q: {input}\nA:", "Read this: {input} --- ")
    assert encoder.decode(framing.context_ids(encoder, encoder.encode("x"))) == "Read this: x --- "
    assert framing.prompt == "Q: {input}\nA:"
