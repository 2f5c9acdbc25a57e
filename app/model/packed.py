"""Packed weights: the frozen linear layers, reordered once into oneDNN's blocked layout.

At 1 to 64 rows the packed product is 1.5 to 2.4 times faster than `nn.Linear` or `Conv1D` on a
CPU, and where there is native code for few rows that is faster still. The operators are private to
torch, so each layer's results are checked against the plain layer before it takes its place; if
one differs or fails, the plain layer stays. Gradients flow through a packed layer to its input.

A checkpoint in the model's dtype is mapped into memory. What is not packed is copied out of it, so
that a packed model keeps no page of the file.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch.nn.functional import gelu as apply_gelu
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from app.model.few_rows import (
    FewRowsKernel,
    FewRowsProduct,
    UnsuitedProcessor,
    load_few_rows_kernel,
)
from app.model.fused.operations import fused_operations
from app.model.native import NoNativeCode

_log = logging.getLogger(__name__)

_LAYOUT_ROWS = 64
"""The row count that the blocked layout is chosen for; it serves 1 to 256 rows equally well."""

_ROW_STEPS = ((16, 1), (64, 4), (128, 8), (512, 16), (1024, 32), (2048, 64), (1 << 62, 256))
"""(most rows, step): up to as many rows, row counts are rounded up to multiples of the step."""

_GELU_ROWS = 32

_Failures = dict[str, list[tuple[str, Exception]]]
"""Layers that could not be replaced as they should, and why, by what they do instead. They are told
once a kind: a model has dozens."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


class PackedLinear(torch.nn.Module):
    """`x @ weight.T + bias`, then GELU if asked (exact: none, or tanh), on a blocked weight.

    `weight` is [out, in]; `x` is [..., in]. With `few_rows` that takes the rows that it can.
    Gradients flow to `x` alone. For them the first backward pass packs the transposed weight too,
    but not in fp32 if the weight is `kept` in memory anyway, as one that is also an embedding's.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        gelu: str | None = None,
        few_rows: FewRowsKernel | None = None,
        kept: bool = False,
    ) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _LAYOUT_ROWS)
        self._plain = weight.detach() if kept else None
        # a view would keep the whole checkpoint in memory
        self._bias = None if bias is None else bias.detach().clone()
        self._activation = ("none", "") if gelu is None else ("gelu", gelu)
        self._transposed: torch.Tensor | None = None
        self._few_rows = None
        if few_rows is not None:
            outputs, inputs = weight.shape
            self._few_rows = FewRowsProduct(
                few_rows, self._weight, (outputs, inputs), self._bias, gelu
            )

    @property
    def is_native(self) -> bool:
        """Whether few rows are multiplied by native code."""
        return self._few_rows is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, [..., out]."""
        if x.requires_grad and torch.is_grad_enabled():
            return self._differentiable(x)
        if self._few_rows is not None and self._few_rows.takes(x):
            return self._few_rows(x)
        return _product(x, self._weight, self._bias, *self._activation)

    def _differentiable(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = _FrozenProduct.apply(x, self)  # type: ignore[no-untyped-call]
        kind, algorithm = self._activation
        if kind == "gelu":
            output = _Gelu.apply(output, algorithm)  # type: ignore[no-untyped-call]
        return output

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """`x @ weight.T + bias`, without the activation and without gradients."""
        return _product(x, self._weight, self._bias)

    def input_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """`gradient @ weight`: the gradient of `linear`'s input, given that of its output."""
        if self._plain is not None and gradient.dtype == torch.float32:
            return _product(gradient, self._plain.t())
        if self._transposed is None:
            plain = self._weight.to_dense() if self._plain is None else self._plain
            self._transposed = torch.ops.mkldnn._reorder_linear_weight(plain.t(), _LAYOUT_ROWS)
        return _product(gradient, self._transposed)


def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    kind: str = "none",
    algorithm: str = "",
) -> torch.Tensor:
    """oneDNN's product with a packed weight, at one of the row counts that it keeps code for."""
    rows = x.shape[-2] if x.dim() > 1 else 1
    extra = padded_rows(rows) - rows
    if extra:
        x = torch.nn.functional.pad(x, (0, 0, 0, extra))
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, [], algorithm)
    return y[..., :rows, :] if extra else y


class _FrozenProduct(torch.autograd.Function):
    """A packed layer's product: nothing is saved, since its weight needs no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: PackedLinear) -> torch.Tensor:
        ctx.layer = layer
        return layer.linear(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.layer.input_gradient(gradients[0].contiguous()), None


class _Gelu(torch.autograd.Function):
    """GELU in bfloat16 keeps its slope, by native code if there is any.

    Without it the slope is computed in fp32: torch's own in bfloat16 takes five times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, approximate: str) -> torch.Tensor:
        fused = fused_operations() if x.dtype == torch.bfloat16 else None
        ctx.approximate, ctx.has_slope = approximate, fused is not None
        if fused is None:
            ctx.save_for_backward(x)
            return apply_gelu(x, approximate=approximate)
        y, slope = fused.gelu(x, approximate)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        [kept] = ctx.saved_tensors
        if ctx.has_slope:
            return gradients[0] * kept, None
        return _gelu_backward(gradients[0], kept, ctx.approximate), None


def _gelu_backward(gradient: torch.Tensor, x: torch.Tensor, approximate: str) -> torch.Tensor:
    width = x.shape[-1]
    flat, slopes = x.reshape(-1, width), gradient.reshape(-1, width)
    result = torch.empty_like(flat)
    # a few rows at a time stay in the processor's cache
    for start in range(0, len(flat), _GELU_ROWS):
        rows = slice(start, start + _GELU_ROWS)
        result[rows] = torch.ops.aten.gelu_backward(
            slopes[rows].float(), flat[rows].float(), approximate=approximate
        )
    return result.view(x.shape)


@cache
def padded_rows(rows: int) -> int:
    """The row count that is computed in place of `rows`: of a hundred sizes the next larger one.

    oneDNN compiles code for every row count, in some milliseconds, and keeps it: of all counts that
    ragged steps have some hundred MB, which last for ever.
    """
    step = next(step for most, step in _ROW_STEPS if rows <= most)
    return -(-rows // step) * step


def pack_linear_layers(module: torch.nn.Module) -> dict[str, str]:
    """Replace the linear layers inside `module` by packed ones; says what was done, for `/info`.

    `packed_weights` is on, partial, off (not on a CPU) or unavailable (oneDNN packs nothing of this
    dtype here); `few_rows` says what multiplies few rows: native, partial or packed.
    """
    parameter = next(module.parameters())
    if parameter.device.type != "cpu":
        return {"packed_weights": "off"}
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        _log.warning("packed weights: oneDNN is not available; plain layers are used")
        return {"packed_weights": "unavailable"}
    if parameter.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        _log.info(
            "packed weights: oneDNN packs no bfloat16 on this processor, plain layers are used"
        )
        return {"packed_weights": "unavailable"}
    linear = [
        (parent, name, child)
        for parent in list(module.modules())
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.Linear | Conv1D)
    ]
    kept = _leave_mapped_file(module)
    few_rows = _few_rows_kernel(parameter.dtype)
    failures: _Failures = {}
    packed = [
        _pack(parent, name, child, few_rows, failures, kept=id(child.weight) in kept)
        for parent, name, child in linear
    ]
    for instead, layers in failures.items():
        name, error = layers[0]
        counts = (len(layers), len(linear))
        _log.warning(
            "packed weights: layer %s %s: %s (%d of %d layers)", name, instead, error, *counts
        )
    done = [layer for layer in packed if layer is not None]
    _log.info("packed weights: %d of %d layers", len(done), len(linear))
    native = sum(layer.is_native for layer in done)
    return {
        "packed_weights": "on" if len(done) == len(linear) else "partial",
        "few_rows": "packed" if native == 0 else "native" if native == len(done) else "partial",
    }


def _leave_mapped_file(module: torch.nn.Module) -> set[int]:
    """Copy what is not packed out of the checkpoint's mapping; returns the ids of these tensors."""
    kept = [
        tensor
        for part in module.modules()
        if not isinstance(part, torch.nn.Linear | Conv1D)
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False))
    ]
    for tensor in kept:
        if not tensor.untyped_storage().resizable():  # memory that torch has not allocated
            tensor.data = tensor.data.clone()
    return {id(tensor) for tensor in kept}


def _few_rows_kernel(dtype: torch.dtype) -> FewRowsKernel | None:
    """The native code for few rows, where there is any."""
    if dtype != torch.bfloat16:
        return None
    try:
        return load_few_rows_kernel()
    except UnsuitedProcessor as error:
        _log.info("products of few rows: oneDNN's are used: %s", error)
        return None
    except NoNativeCode as error:
        _log.warning("products of few rows: no native code, oneDNN's are used: %s", error)
        return None


def _pack(
    parent: torch.nn.Module,
    name: str,
    layer: torch.nn.Linear | Conv1D,
    few_rows: FewRowsKernel | None,
    failures: _Failures,
    *,
    kept: bool,
) -> PackedLinear | None:
    """Put a packed layer in the place of child `name`; None if it stays plain.

    `kept`: another module keeps the weight in memory.
    """
    activation, gelu = _fusible(parent, name)
    weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
    same = torch.nn.Identity()
    plain = torch.nn.Sequential(layer, parent.get_submodule(activation) if gelu else same)
    for kernel in dict.fromkeys((few_rows, None)):
        try:
            replacement = PackedLinear(
                weight.contiguous(), layer.bias, gelu=gelu, few_rows=kernel, kept=kept
            )
            for rows in (3, kernel.max_rows, kernel.max_rows + 1) if kernel else (3,):
                _check_equal(plain, replacement, rows, weight.shape[1], weight.dtype)
        # AttributeError: a torch without the private operators
        except (NoNativeCode, RuntimeError, AttributeError, ArithmeticError) as error:
            instead = "stays plain" if kernel is None else "is not multiplied by native code"
            failures.setdefault(instead, []).append((name, error))
            continue
        setattr(parent, name, replacement)
        if gelu:
            setattr(parent, activation, same)
        return replacement
    return None


def _fusible(parent: torch.nn.Module, name: str) -> tuple[str, str | None]:
    """The activation that always follows the layer: its name in `parent` and which GELU it is."""
    activation = {"c_fc": "act", "fc1": "activation_fn"}.get(name, "")
    found = getattr(parent, activation, None) if activation else None
    if isinstance(found, NewGELUActivation | GELUTanh):
        return activation, "tanh"
    return activation, "none" if isinstance(found, GELUActivation) else None


@torch.inference_mode()
def _check_equal(
    plain: torch.nn.Module, packed: torch.nn.Module, rows: int, width: int, dtype: torch.dtype
) -> None:
    """Raise ArithmeticError unless both layers agree on as many rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, rows, width, generator=generator).to(dtype)
    expected, got = plain(x).float(), packed(x).float()
    scale = float(expected.abs().max()) or 1.0
    difference = float((expected - got).abs().max()) / scale
    if not difference <= TOLERANCE[dtype]:
        raise ArithmeticError(f"a packed layer differs from the plain one by {difference:.2e}")
