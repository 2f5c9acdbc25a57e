"""Packed weights: the same products as plain layers, and plain layers wherever they are not."""

from __future__ import annotations

import gc
import logging
import shutil
from pathlib import Path

import pytest
import torch
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from app.engine.probe import probe
from app.model import few_rows as few_rows_module
from app.model import packed as packed_module
from app.model.dense import dense_logits
from app.model.few_rows import FewRowsKernel, FewRowsProduct, Processor, load_few_rows_kernel
from app.model.load import load_model
from app.model.native import NoNativeCode
from app.model.packed import PackedLinear, pack_linear_layers, padded_rows

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
WITHOUT_BFLOAT16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU packs no bfloat16"
)
BOTH = pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=WITHOUT_BFLOAT16)]
)


class Block(torch.nn.Module):
    """A feed-forward block as GPT-2 names its parts."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(48, 32), Conv1D(32, 48)
        self.act = ACT2FN[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.act(self.c_fc(x)))


class TiedHead(torch.nn.Module):
    """An embedding and a head that share their weight, [vocabulary, width]."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.wte = torch.nn.Embedding(vocabulary, width)
        self.lm_head = torch.nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lm_head(x)


def resident_mb() -> float:
    """The memory of this process, in MB; skips the test where nothing tells it."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("no list of this process's pages here")
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def no_code() -> FewRowsKernel:
    raise NoNativeCode("none here")


def few_rows_by(with_code: bool) -> str:
    """What multiplies few rows, where code may be compiled or not."""
    try:
        load_few_rows_kernel()
    except NoNativeCode:
        return "packed"
    return "native" if with_code else "packed"


def random_input(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(1, rows, width, generator=generator).to(dtype)


def relative_difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    scale = max(1.0, float(expected.abs().max()))
    return float((got.float() - expected.float()).abs().max()) / scale


@BOTH
@pytest.mark.parametrize("rows", [1, 2, 7, 64, 300])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_packed_linear_layer_equals_the_plain_one(
    dtype: torch.dtype, rows: int, bias: bool
) -> None:
    plain = torch.nn.Linear(32, 48, bias=bias).to(dtype)
    packed = PackedLinear(plain.weight, plain.bias)
    x = random_input(rows, 32, dtype)
    assert relative_difference(packed(x), plain(x)) <= TOLERANCE[dtype]


@BOTH
@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "relu", "gelu"])
@torch.inference_mode()
def test_a_packed_block_equals_the_plain_one_whatever_its_activation(
    dtype: torch.dtype, activation: str
) -> None:
    torch.manual_seed(0)
    block = Block(activation).to(dtype)
    for name, parameter in block.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    x = random_input(9, 32, dtype)
    expected = block(x)
    assert pack_linear_layers(block)["packed_weights"] == "on"
    assert isinstance(block.c_fc, PackedLinear)
    assert isinstance(block.c_proj, PackedLinear)
    assert isinstance(block.act, torch.nn.Identity) == (activation != "relu")
    assert relative_difference(block(x), expected) <= TOLERANCE[dtype]


@BOTH
@torch.inference_mode()
def test_a_rows_product_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype) -> None:
    plain = torch.nn.Linear(32, 48).to(dtype)
    packed = PackedLinear(plain.weight, plain.bias)
    x = random_input(64, 32, dtype)
    together = packed(x)
    for rows in (2, 3, 17, 64):
        assert torch.equal(packed(x[:, :rows]), together[:, :rows])


@WITHOUT_BFLOAT16
@pytest.mark.parametrize("rows", [1, 7, 300])
@torch.inference_mode()
def test_a_block_is_right_for_few_and_for_many_rows_with_native_code_and_without(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x = random_input(rows, 32, torch.bfloat16)
    for with_code in (True, False):
        block = Block("gelu_new").bfloat16()
        expected = block(x)
        if not with_code:
            monkeypatch.setattr(packed_module, "load_few_rows_kernel", no_code)
        notes = pack_linear_layers(block)
        assert notes == {"packed_weights": "on", "few_rows": few_rows_by(with_code)}
        assert relative_difference(block(x), expected) <= TOLERANCE[torch.bfloat16]


@WITHOUT_BFLOAT16
@torch.inference_mode()
def test_native_code_whose_results_differ_is_not_used_and_the_layer_is_packed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if few_rows_by(True) != "native":
        pytest.skip("no native code here")
    right = FewRowsProduct.__call__
    monkeypatch.setattr(FewRowsProduct, "__call__", lambda self, x: right(self, x) + 1)
    block = Block("relu").bfloat16()
    x = random_input(5, 32, torch.bfloat16)
    expected = block(x)
    with caplog.at_level(logging.WARNING):
        assert pack_linear_layers(block) == {"packed_weights": "on", "few_rows": "packed"}
    assert "layer c_fc is not multiplied by native code: a packed layer differs" in caplog.text
    assert relative_difference(block(x), expected) <= TOLERANCE[torch.bfloat16]


@WITHOUT_BFLOAT16
@pytest.mark.parametrize("processor", [Processor(True, 32), Processor(True, None)])
def test_where_onednn_has_another_layout_its_products_are_used_and_said_so_once(
    processor: Processor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on processors that multiply tiles (AMX): two panels of 32 have the size of one of 64."""
    monkeypatch.setattr(few_rows_module, "this_processor", lambda: processor)
    with caplog.at_level(logging.INFO):
        notes = pack_linear_layers(Block("gelu_new").bfloat16())
    assert notes == {"packed_weights": "on", "few_rows": "packed"}
    [record] = [record for record in caplog.records if "oneDNN's" in record.getMessage()]
    assert record.levelno == logging.INFO
    assert "oneDNN's are used: oneDNN lays bfloat16 weights out in" in record.getMessage()


@pytest.mark.parametrize("folder", ["tiny_gpt2_folder", "tiny_bart_folder"])
def test_a_bfloat16_model_loads_without_a_warning_and_is_right_whatever_the_processor(
    folder: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        model = load_model(str(request.getfixturevalue(folder)), device="cpu", dtype="bfloat16")
    packed = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert model.notes["packed_weights"] == ("on" if packed else "unavailable")
    if packed:
        assert model.notes["few_rows"] == few_rows_by(True)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    about = [record for record in caplog.records if record.name == packed_module.__name__]
    assert len(about) <= 2
    probe(model)


def test_what_befalls_every_layer_is_told_once(
    tiny_gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(packed_module.TOLERANCE, torch.float32, -1.0)
    with caplog.at_level(logging.WARNING):
        load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32")
    [record] = caplog.records
    assert "stays plain: a packed layer differs from the plain one" in record.getMessage()
    assert "(9 of 9 layers)" in record.getMessage()


@torch.inference_mode()
def test_a_neighbour_that_is_not_a_number_does_not_touch_a_row() -> None:
    plain = torch.nn.Linear(32, 48)
    packed = PackedLinear(plain.weight, plain.bias)
    x = random_input(5, 32, torch.float32)
    poisoned = x.clone()
    poisoned[0, 2] = float("nan")
    others = [0, 1, 3, 4]
    assert torch.equal(packed(poisoned)[0, others], packed(x)[0, others])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_packed_model_gives_the_logits_of_the_plain_one(
    model_folders: dict[str, Path], family: str
) -> None:
    ids = torch.arange(3, 40).reshape(1, -1)
    logits = []
    for packed in (True, False):
        model = load_model(str(model_folders[family]), device="cpu", dtype="float32", packed=packed)
        assert model.notes["packed_weights"] == ("on" if packed else "off")
        layers = [type(layer) for layer in model.hf.modules()]
        assert (PackedLinear in layers) == packed
        logits.append(dense_logits(model, ids).detach())
    assert relative_difference(*logits) <= 1e-5


def test_a_layer_whose_check_fails_stays_plain_and_the_model_stays_right(
    tiny_gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class WrongAfterAWhile(PackedLinear):
        made = 0

        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            WrongAfterAWhile.made += 1
            self.wrong = WrongAfterAWhile.made > 3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + (1.0 if self.wrong else 0.0)

    plain = load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32", packed=False)
    monkeypatch.setattr(packed_module, "PackedLinear", WrongAfterAWhile)
    with caplog.at_level(logging.WARNING):
        model = load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32")
    assert model.notes["packed_weights"] == "partial"
    assert "differs from the plain one" in caplog.text
    ids = torch.arange(3, 40).reshape(1, -1)
    with torch.inference_mode():
        got, expected = dense_logits(model, ids), dense_logits(plain, ids)
    assert relative_difference(got, expected) <= 1e-5


def test_operators_that_are_gone_leave_the_plain_layers(
    tiny_gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(packed_module.PackedLinear, "__init__", gone)
    model = load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32")
    assert model.notes["packed_weights"] == "partial"
    assert torch.isfinite(dense_logits(model, torch.tensor([[1, 2, 3]]))).all()


def test_without_onednn_nothing_is_packed(
    tiny_gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32")
    assert model.notes["packed_weights"] == "unavailable"


def test_row_counts_become_few_and_none_grows_by_more_than_an_eighth() -> None:
    sizes = {padded_rows(rows) for rows in range(1, 2049)}
    assert len(sizes) <= 100
    for rows in range(1, 2049):
        padded = padded_rows(rows)
        assert rows <= padded <= max(rows + 3, rows * 9 // 8 + 1)
        assert padded_rows(padded) == padded
    assert [padded_rows(rows) for rows in (1, 5, 16, 32, 64, 128, 512)] == [
        1, 5, 16, 32, 64, 128, 512,
    ]  # fmt: skip


@torch.inference_mode()
def test_rows_that_are_filled_up_give_what_they_give_and_no_more() -> None:
    plain = torch.nn.Linear(32, 48)
    packed = PackedLinear(plain.weight, plain.bias, gelu="tanh")
    for rows in (17, 65, 129, 301):
        x = random_input(rows, 32, torch.float32)
        for shape in ((rows, 32), (1, rows, 32), (1, 1, rows, 32)):
            y = packed(x.view(shape))
            expected = torch.nn.functional.gelu(plain(x), approximate="tanh").view(y.shape)
            assert y.shape == (*shape[:-1], 48)
            assert relative_difference(y, expected) <= TOLERANCE[torch.float32]


@torch.inference_mode()
def test_memory_does_not_grow_with_the_row_counts_that_were_met() -> None:
    """oneDNN keeps the code that it compiles for each."""
    plain = torch.nn.Linear(256, 768)
    packed = PackedLinear(plain.weight, plain.bias)

    def grown_mb(counts: range) -> float:
        before = resident_mb()
        for rows in counts:
            packed(torch.zeros(1, rows, 256))
        return resident_mb() - before

    grown_mb(range(padded_rows(1), 700, 16))
    assert grown_mb(range(257, 513)) < 10


@BOTH
@pytest.mark.parametrize("rows", [5, 70])
@pytest.mark.parametrize("activation", ["gelu_new", "relu", "gelu"])
def test_the_gradient_of_a_packed_blocks_input_is_the_plain_ones(
    dtype: torch.dtype, rows: int, activation: str
) -> None:
    torch.manual_seed(0)
    block = Block(activation).to(dtype).requires_grad_(False)
    x = random_input(rows, 32, dtype).requires_grad_()
    slopes = random_input(rows + 1, 32, dtype)[:, :rows]
    [expected] = torch.autograd.grad(block(x), x, slopes)
    pack_linear_layers(block)
    [got] = torch.autograd.grad(block(x), x, slopes)
    assert relative_difference(got, expected) <= TOLERANCE[dtype]


@BOTH
@pytest.mark.parametrize("rows", [1, 70])
def test_the_gradient_is_right_where_an_embedding_shares_the_weight(
    dtype: torch.dtype, rows: int
) -> None:
    head = TiedHead(48, 32).to(dtype).requires_grad_(False)
    x = random_input(rows, 32, dtype).requires_grad_()
    slopes = random_input(rows, 48, dtype)
    [expected] = torch.autograd.grad(head(x), x, slopes)
    pack_linear_layers(head)
    assert isinstance(head.lm_head, PackedLinear)
    for _ in range(2):
        [got] = torch.autograd.grad(head(x), x, slopes)
        assert relative_difference(got, expected) <= TOLERANCE[dtype]


def test_a_backward_pass_in_fp32_packs_no_weight_that_an_embedding_shares() -> None:
    head = TiedHead(40_000, 256).requires_grad_(False)
    pack_linear_layers(head)
    x = random_input(2, 256, torch.float32).requires_grad_()
    before = resident_mb()
    torch.autograd.grad(head(x).sum(), x)
    assert resident_mb() - before < head.wte.weight.nbytes / 2e6


def test_a_packed_model_leaves_its_checkpoint(tiny_gpt2_folder: Path, tmp_path: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no list of what this process has mapped here")
    # no other test has mapped a copy
    folder = shutil.copytree(tiny_gpt2_folder, tmp_path / "model")
    file = str(folder / "model.safetensors")
    plain = load_model(str(folder), device="cpu", dtype="float32", packed=False)
    assert file in maps.read_text()
    del plain
    gc.collect()
    model = load_model(str(folder), device="cpu", dtype="float32")
    assert model.notes["packed_weights"] == "on"
    gc.collect()
    assert file not in maps.read_text()
