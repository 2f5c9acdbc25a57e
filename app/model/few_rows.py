"""Products of few rows in native code, on weights that oneDNN has reordered.

With few rows a product takes as long as its weight takes to be read; oneDNN's reads it at about
half of what memory gives. The weight is shared, in oneDNN's blocked layout, so nothing is kept
twice.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch

from app.model.native import NoNativeCode, default_folder, load_native

_SOURCE = Path(__file__).with_name("few_rows.c")
_PANEL = 64
"""Outputs that are together in the blocked layout."""

_PANELS = (16, 32, 48, 64)
"""How many outputs a panel may have on some processor."""

_ASKED = ((40, 24), (96, 130), (320, 256))
"""Shapes of weights, (outputs, inputs), whose layouts are looked at."""

_GELU = {None: 0, "none": 1, "tanh": 2}


class UnsuitedProcessor(NoNativeCode):
    """The code is not for this processor: nothing is missing, and there is nothing to install."""


@dataclass(frozen=True)
class Processor:
    """What decides whether the code serves: products of bfloat16 vectors (AVX512-BF16), and the
    outputs in a panel of oneDNN's layout, None if that is another one."""

    multiplies_vectors: bool
    panel: int | None


class ProductCall(ctypes.Structure):
    """The C code's `struct call`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "inputs", "pairs", "outputs", "x_row")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "out", "packed")),
        ("gelu", ctypes.c_int64),
    )


class FewRowsKernel:
    """The compiled product; it takes bfloat16 and up to `max_rows` rows."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.max_rows = ctypes.c_int64.in_dll(library, "polyprefix_few_rows_most").value
        self.run = library.polyprefix_few_rows
        """Computes what a `ProductCall` describes; other Python threads run meanwhile."""
        self.run.argtypes, self.run.restype = (ctypes.POINTER(ProductCall),), None


class FewRowsProduct:
    """One layer: `x @ weight.T + bias`, then GELU if asked, for few rows.

    `reordered` is a weight of the given shape, (outputs, inputs), as oneDNN has laid it out. Raises
    NoNativeCode if that is not the layout that the code reads; whoever makes this compares results,
    since the size alone is seen here.
    """

    def __init__(
        self,
        kernel: FewRowsKernel,
        reordered: torch.Tensor,
        shape: tuple[int, int],
        bias: torch.Tensor | None,
        gelu: str | None,
    ) -> None:
        outputs, inputs = shape
        panels = -(-outputs // _PANEL)
        size = int(torch.ops.mkldnn._nbytes(reordered))
        pairs, rest = divmod(size, panels * _PANEL * 4)
        if rest or not inputs <= 2 * pairs < inputs + _PANEL:
            raise NoNativeCode(f"a weight of {outputs} x {inputs} takes {size} bytes")
        self._kernel = kernel
        # held because calls have their addresses
        self._reordered = reordered
        self._bias = torch.zeros(panels * _PANEL)
        if bias is not None:
            self._bias[:outputs] = bias
        self._weight_at = int(torch.ops.mkldnn.data_ptr(reordered))
        self._inputs, self._outputs, self._pairs = inputs, outputs, pairs
        self._gelu = _GELU[gelu]

    def takes(self, x: torch.Tensor) -> bool:
        """Whether `x`, [..., inputs], has few enough rows."""
        fits = x.shape[-1] == self._inputs and x.dtype == torch.bfloat16
        return fits and 0 < x.numel() <= self._kernel.max_rows * self._inputs

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, [..., outputs], for an `x` that is taken."""
        rows = x.reshape(-1, self._inputs)
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        output = torch.empty((*x.shape[:-1], self._outputs), dtype=x.dtype)
        packed = torch.empty(len(rows) * self._pairs, dtype=torch.int32)
        call = ProductCall(
            len(rows),
            self._inputs,
            self._pairs,
            self._outputs,
            rows.stride(0),
            rows.data_ptr(),
            self._weight_at,
            self._bias.data_ptr(),
            output.data_ptr(),
            packed.data_ptr(),
            self._gelu,
        )
        self._kernel.run(call)
        return output


def load_few_rows_kernel(folder: Path | None = None) -> FewRowsKernel:
    """Compile the code, or take it from `folder` (the user's cache if None).

    Raises UnsuitedProcessor where oneDNN's own products are to be used, and else NoNativeCode.
    """
    check_processor(this_processor())
    return FewRowsKernel(load_native(_SOURCE, {}, folder or default_folder()))


def check_processor(processor: Processor) -> None:
    """Raise UnsuitedProcessor, with the reason, unless the code can multiply there."""
    if not processor.multiplies_vectors:
        raise UnsuitedProcessor("the processor has no AVX512-BF16")
    if processor.panel != _PANEL:
        found = f"panels of {processor.panel} outputs" if processor.panel else "another layout"
        raise UnsuitedProcessor(
            f"oneDNN lays bfloat16 weights out in {found} here; the code reads panels of {_PANEL}"
        )


def this_processor() -> Processor:
    """Ask torch, and oneDNN by small weights that it lays out."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if ask is None or not ask():
        return Processor(False, None)
    try:
        panels = {_panel_of_a_weight(shape) for shape in _ASKED}
    except (RuntimeError, AttributeError):  # no such layout, or no such operator in this torch
        return Processor(True, None)
    return Processor(True, panels.pop() if len(panels) == 1 else None)


def _panel_of_a_weight(shape: tuple[int, int]) -> int | None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight, _PANEL)
    size = int(torch.ops.mkldnn._nbytes(reordered))
    memory = ctypes.string_at(int(torch.ops.mkldnn.data_ptr(reordered)), size)
    return outputs_per_panel(weight, memory)


def outputs_per_panel(weight: torch.Tensor, memory: bytes) -> int | None:
    """How many outputs of `weight`, [outputs, inputs] bfloat16, a panel has in `memory`.

    Panels follow each other, each [pairs of inputs, outputs, 2]. None for other layouts.
    """
    outputs, inputs = weight.shape
    if len(memory) < weight.nbytes:
        return None
    held = torch.frombuffer(bytearray(memory), dtype=torch.bfloat16)
    for panel in _PANELS:
        panels = -(-outputs // panel)
        pairs, rest = divmod(held.numel(), panels * panel * 2)
        if rest or 2 * pairs < inputs:
            continue
        rows = held.view(panels, pairs, panel, 2).transpose(1, 2).reshape(panels * panel, 2 * pairs)
        if torch.equal(rows[:outputs, :inputs], weight):
            return panel
    return None
