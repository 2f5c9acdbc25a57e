"""What PEFT saved, uploaded as it is, generates over HTTP what PEFT generates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from transformers import AutoTokenizer

from tests.foreign_models import SOURCE, TOKENS, frozen, plain, save_base
from tests.server import serving

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PEFT asks transformers by an old name
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.mark.parametrize("family", ["gpt2", "llama", "bart-2", "bart-3"])
def test_an_uploaded_adapter_generates_what_peft_generates(family: str, tmp_path: Path) -> None:
    base, adapter = save_base(family, tmp_path / family), tmp_path / "adapter"
    pair = family.startswith("bart")
    torch.manual_seed(6)
    config = PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM" if pair else "CAUSAL_LM", num_virtual_tokens=4
    )
    theirs = get_peft_model(plain(base), config).eval()
    theirs.save_pretrained(adapter)
    prompt = SOURCE if pair else TOKENS
    made = theirs.generate(input_ids=prompt, max_new_tokens=8, do_sample=False)
    new = made[0, 1:] if pair else made[0, prompt.shape[1] :]
    expected = AutoTokenizer.from_pretrained(base).decode(new, skip_special_tokens=True)

    fields = json.loads((adapter / "adapter_config.json").read_text())
    with serving(frozen(base), tmp_path) as server:
        tensors = (adapter / "adapter_model.safetensors").read_bytes()
        header = {"x-adapter-config": json.dumps(fields)}
        assert server.push("task", tensors, **header).status_code == 201
        body = {"model": "task", "prompt": prompt[0].tolist(), "max_tokens": 8, "temperature": 0}
        with server.client() as client:
            adapted = client.post("/v1/completions", json=body).json()
            alone = client.post("/v1/completions", json={**body, "model": family}).json()
    assert adapted["choices"][0]["text"] == expected
    assert alone["choices"][0]["text"] != expected
