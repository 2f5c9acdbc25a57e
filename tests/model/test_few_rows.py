"""Few rows in native code: the products of plain layers, whatever their size and neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import gelu as plain_gelu

from app.model import few_rows as few_rows_module
from app.model.few_rows import (
    FewRowsProduct,
    Processor,
    UnsuitedProcessor,
    check_processor,
    load_few_rows_kernel,
    outputs_per_panel,
    this_processor,
)
from app.model.native import NoNativeCode

HALF_A_UNIT = 2.0**-8
"""Largest relative difference from fp64 that rounding to bfloat16 explains."""


def why_none() -> str | None:
    """Why a server would have no such product here; None if it would."""
    try:
        load_few_rows_kernel()
    except NoNativeCode as error:
        return str(error)
    return None


NATIVE = pytest.mark.skipif(why_none() is not None, reason=f"oneDNN multiplies: {why_none()}")
ACTIVATIONS = (None, "none", "tanh")


class Layer:
    """A random layer: native, and in fp64 on the same rounded numbers."""

    def __init__(
        self, outputs: int, inputs: int, *, bias: bool = True, gelu: str | None = None
    ) -> None:
        self._generator = torch.Generator().manual_seed(outputs * 8191 + inputs)
        self.weight = self.randn(outputs, inputs) / inputs**0.5
        self.bias = self.randn(outputs) if bias else None
        self._gelu = gelu
        reordered = torch.ops.mkldnn._reorder_linear_weight(self.weight, 64)
        self.native = FewRowsProduct(
            load_few_rows_kernel(), reordered, (outputs, inputs), self.bias, gelu
        )

    def randn(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, generator=self._generator).bfloat16()

    def exact(self, x: torch.Tensor) -> torch.Tensor:
        y = x.double() @ self.weight.double().T
        if self.bias is not None:
            y = y + self.bias.double()
        return y if self._gelu is None else plain_gelu(y, approximate=self._gelu)


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, but for numbers that are small beside the others."""
    return float(((got.double() - expected).abs() / (expected.abs() + 1e-2)).max())


@NATIVE
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 16),
    outputs=st.integers(1, 200),
    inputs=st.integers(1, 200),
    bias=st.booleans(),
    gelu=st.sampled_from(ACTIVATIONS),
)
def test_a_layer_of_any_size_equals_the_exact_product(
    rows: int, outputs: int, inputs: int, bias: bool, gelu: str | None
) -> None:
    layer = Layer(outputs, inputs, bias=bias, gelu=gelu)
    x = layer.randn(rows, inputs)
    assert difference(layer.native(x), layer.exact(x)) <= HALF_A_UNIT


@NATIVE
@pytest.mark.parametrize("inputs", [3071, 3072, 3073, 7001])
def test_inputs_that_are_read_in_several_pieces_are_all_summed(inputs: int) -> None:
    layer = Layer(130, inputs)
    x = layer.randn(13, inputs)
    assert difference(layer.native(x), layer.exact(x)) <= HALF_A_UNIT


@NATIVE
def test_as_many_rows_as_are_taken_equal_the_exact_product_and_more_are_not_taken() -> None:
    layer = Layer(96, 64, gelu="tanh")
    most = load_few_rows_kernel().max_rows
    x = layer.randn(most, 64)
    assert layer.native.takes(x)
    assert difference(layer.native(x), layer.exact(x)) <= HALF_A_UNIT
    assert not layer.native.takes(layer.randn(most + 1, 64))
    assert not layer.native.takes(layer.randn(0, 64))
    assert not layer.native.takes(x.float())
    assert not layer.native.takes(layer.randn(2, 128))


@NATIVE
def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    layer = Layer(100, 77, gelu="none")
    x = layer.randn(load_few_rows_kernel().max_rows, 77)
    together = layer.native(x)
    for rows in range(1, len(x)):
        assert torch.equal(layer.native(x[:rows]), together[:rows])
        assert torch.equal(layer.native(x[rows:]), together[rows:])


@NATIVE
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("gelu", ACTIVATIONS)
def test_a_neighbour_that_is_not_finite_does_not_touch_a_row(
    poison: float, gelu: str | None
) -> None:
    layer = Layer(70, 33, gelu=gelu)
    x = layer.randn(9, 33)
    expected = layer.native(x)
    x[4, 32] = poison
    got = layer.native(x)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(got[others], expected[others])
    assert not torch.isfinite(got[4]).all()


@NATIVE
@pytest.mark.parametrize("gelu", ["none", "tanh"])
def test_an_activation_is_right_for_small_large_and_infinite_numbers(gelu: str) -> None:
    weight = torch.zeros(1, 1).bfloat16() + 1
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight, 64)
    layer = FewRowsProduct(load_few_rows_kernel(), reordered, (1, 1), None, gelu)
    numbers = [0.0, 1e-6, 0.5, 1.0, 3.0, 4.5, 5.5, 9.0, 13.0, 100.0, 1e10, 1e38]
    x = torch.tensor([*numbers, *(-number for number in numbers)]).bfloat16()[:, None]
    expected = plain_gelu(x.double(), approximate=gelu)
    for first in range(0, len(x), 12):
        got = layer(x[first : first + 12]).double()
        assert torch.allclose(got, expected[first : first + 12], rtol=HALF_A_UNIT, atol=1e-6)
    infinite = torch.tensor([[float("inf")], [-float("inf")], [float("nan")]]).bfloat16()
    assert not torch.isfinite(layer(infinite)).any()


@NATIVE
def test_inputs_may_have_any_strides_and_shape() -> None:
    layer = Layer(40, 24)
    together = layer.randn(2, 3, 48)
    x = together[..., 24:]
    assert torch.equal(layer.native(x), layer.native(x.contiguous()))
    assert layer.native(x).shape == (2, 3, 40)
    columns = layer.randn(24, 5).t()
    assert torch.equal(layer.native(columns), layer.native(columns.contiguous()))


@NATIVE
def test_a_weight_in_another_layout_is_refused() -> None:
    reordered = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(64, 64).bfloat16(), 64)
    with pytest.raises(NoNativeCode, match="64 x 512 takes 8192 bytes"):
        FewRowsProduct(load_few_rows_kernel(), reordered, (64, 512), None, None)


def test_load_fails_without_a_folder_for_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_rows_module, "this_processor", lambda: Processor(True, 64))
    (tmp_path / "file").write_text("")
    with pytest.raises(NoNativeCode, match=r"few_rows\.c"):
        load_few_rows_kernel(tmp_path / "file" / "folder")


def laid_out(weight: torch.Tensor, panel: int, block: int = 32) -> bytes:
    """`weight`, [outputs, inputs], in panels, padded with zeros to whole ones and whole blocks."""
    outputs, inputs = weight.shape
    panels, pairs = -(-outputs // panel), -(-inputs // block) * block // 2
    padded = torch.zeros(panels * panel, 2 * pairs, dtype=weight.dtype)
    padded[:outputs, :inputs] = weight
    panelled = padded.view(panels, panel, pairs, 2).transpose(1, 2)
    return panelled.contiguous().view(torch.uint8).numpy().tobytes()


SHAPES = pytest.mark.parametrize("shape", [(40, 24), (96, 130), (320, 256), (64, 64), (1, 1)])


@SHAPES
@pytest.mark.parametrize("panel", [16, 32, 48, 64])
def test_the_outputs_in_a_panel_are_read_from_memory(shape: tuple[int, int], panel: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = outputs_per_panel(weight, laid_out(weight, panel))
    if shape[0] > panel or shape == (40, 24):
        assert found == panel
    else:  # one panel of any width may hold it
        assert found is not None


def test_a_layout_without_panels_is_none_of_them() -> None:
    weight = torch.randn(320, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    plain = weight.view(torch.uint8).numpy().tobytes()
    transposed = weight.t().contiguous().view(torch.uint8).numpy().tobytes()
    for memory in (plain, transposed, plain[:1000], b""):
        assert outputs_per_panel(weight, memory) is None


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (Processor(False, None), "no AVX512-BF16"),
        (Processor(False, 64), "no AVX512-BF16"),
        (Processor(True, 32), "panels of 32 outputs here; the code reads panels of 64"),
        (Processor(True, None), "another layout"),
    ],
)
def test_a_processor_that_the_code_is_not_for_is_told_why(
    processor: Processor, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnsuitedProcessor, match=reason):
        check_processor(processor)
    monkeypatch.setattr(few_rows_module, "this_processor", lambda: processor)
    with pytest.raises(UnsuitedProcessor, match=reason):
        load_few_rows_kernel()


def test_a_processor_that_the_code_is_for_passes() -> None:
    check_processor(Processor(True, 64))


def test_what_is_asked_of_this_processor_decides_what_a_server_has() -> None:
    processor = this_processor()
    suited = processor == Processor(True, 64)
    assert suited or why_none() is not None
    if why_none() is None:
        assert suited
