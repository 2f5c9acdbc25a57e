"""A GGUF file becomes a folder that the server loads, with the weights and the text it had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from app.errors import UnsupportedModel
from app.model.load import load_model
from app.model.packaged.gguf import convert
from tests.model.packaged.conftest import SPECIALS


@pytest.fixture(scope="module")
def folder(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("folder") / "tiny"
    convert(gguf_file, made)
    return made


def test_the_folder_holds_the_weights_of_the_file(folder: Path, weights: LlamaForCausalLM) -> None:
    made = LlamaForCausalLM.from_pretrained(folder).state_dict()
    for name, tensor in weights.state_dict().items():
        assert made[name].dtype == torch.bfloat16
        # the file's quantised part keeps 8 bits, the folder 8 bits of mantissa
        torch.testing.assert_close(made[name].float(), tensor, rtol=2**-7, atol=0.01)


def test_the_fingerprint_is_the_one_that_a_server_computes(folder: Path, gguf_file: Path) -> None:
    again = convert(gguf_file, folder.parent / "again")
    assert load_model(str(folder), device="cpu").spec.fingerprint == again


def test_the_tokenizer_reads_digits_one_by_one_and_keeps_special_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("the 2020") == ["the", "Ġ", "2", "0", "2", "0"]
    assert tokenizer.convert_ids_to_tokens(tokenizer(SPECIALS[2]).input_ids) == [SPECIALS[2]]
    assert tokenizer.eos_token == SPECIALS[2]


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"GGUF, but nothing more")
    with pytest.raises(UnsupportedModel, match="weights.gguf cannot be read as a GGUF model"):
        convert(file, tmp_path / "made")
