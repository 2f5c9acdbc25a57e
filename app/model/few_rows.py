"""Products of few rows in native code, on weights that oneDNN has reordered.

With few rows a product takes as long as its weight takes to be read; oneDNN's reads it at about
half of what memory gives. The weight is shared, in oneDNN's blocked layout, so nothing is kept
twice. Knows nothing about models.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from app.model.native import NoNativeCode, default_folder, load_native

_SOURCE = Path(__file__).with_name("few_rows.c")
_PANEL = 64
"""Outputs that stand together in the blocked layout."""

_GELU = {None: 0, "none": 1, "tanh": 2}


class _Call(ctypes.Structure):
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
        self._function = library.polyprefix_few_rows
        self._function.argtypes, self._function.restype = (ctypes.POINTER(_Call),), None

    def run(self, call: _Call) -> None:
        """Compute what `call` describes; other Python threads run meanwhile."""
        self._function(ctypes.byref(call))


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
        call = _Call(
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

    Raises NoNativeCode, also where the processor has no product of bfloat16 vectors.
    """
    return FewRowsKernel(load_native(_SOURCE, {}, folder or default_folder()))
