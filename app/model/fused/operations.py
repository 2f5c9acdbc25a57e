"""GELU and cross entropy of bfloat16 numbers with their slopes, in native code.

torch has no function that gives a value and its slope, and takes five times as long for both. Where
there is no compiler, callers use torch.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path

import torch

from app.model.native import NoNativeCode, default_folder, load_native

_log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("operations.c")

_GELU = {"none": 0, "tanh": 1}

_TOLERANCE = 1e-2
"""Largest difference from torch's results that the check after loading allows."""


class FusedOperations:
    """The compiled code. Its tensors are on the CPU; numbers are bfloat16, sums fp32."""

    def __init__(self, library: ctypes.CDLL) -> None:
        number, address = ctypes.c_int64, ctypes.c_void_p
        self._gelu = library.polyprefix_gelu
        self._gelu.argtypes, self._gelu.restype = (number, *3 * (address,), number), None
        self._cross_entropy = library.polyprefix_cross_entropy
        self._cross_entropy.argtypes = (number, number, *6 * (address,))
        self._cross_entropy.restype = None

    def gelu(self, x: torch.Tensor, approximate: str) -> tuple[torch.Tensor, torch.Tensor]:
        """GELU of `x` and its slope there; `approximate` is "none" or "tanh", as torch has it."""
        x = x.contiguous()
        y, slope = torch.empty_like(x), torch.empty_like(x)
        self._gelu(x.numel(), x.data_ptr(), y.data_ptr(), slope.data_ptr(), _GELU[approximate])
        return y, slope

    def cross_entropy(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
        smoothing: torch.Tensor | None,
        *,
        with_slopes: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss of each row of `logits` [rows, vocabulary], and its slopes if asked for.

        As in `app.training.cross_entropy.row_cross_entropy`; a row of weight 0 has slopes 0. Raises
        IndexError for a label that is not in the vocabulary.
        """
        rows, vocabulary = logits.shape
        logits, weights = logits.contiguous(), weights.float().contiguous()
        labels = labels.where(weights != 0, 0).contiguous()
        if rows and not 0 <= int(labels.min()) <= int(labels.max()) < vocabulary:
            raise IndexError(f"a label is not one of the {vocabulary} tokens of the vocabulary")
        share = torch.zeros_like(weights) if smoothing is None else smoothing.float().contiguous()
        losses = torch.empty_like(weights)
        slopes = torch.empty_like(logits) if with_slopes else None
        self._cross_entropy(
            rows,
            vocabulary,
            logits.data_ptr(),
            labels.data_ptr(),
            weights.data_ptr(),
            share.data_ptr(),
            losses.data_ptr(),
            None if slopes is None else slopes.data_ptr(),
        )
        return losses, slopes


def load_fused_operations(folder: Path | None = None) -> FusedOperations:
    """Compile the code, or take it from `folder` (the user's cache if None), and check it.

    Raises NoNativeCode if there is none, ArithmeticError if its results differ from torch's.
    """
    made = FusedOperations(load_native(_SOURCE, {}, folder or default_folder()))
    _check(made)
    return made


@cache
def fused_operations() -> FusedOperations | None:
    """The code of this process, made when it is first asked for; None where torch is to be used."""
    try:
        return load_fused_operations()
    except (NoNativeCode, ArithmeticError) as error:
        _log.warning("training in bfloat16: no native code, torch's is used: %s", error)
        return None


def _check(made: FusedOperations) -> None:
    """Raise ArithmeticError unless all results agree with torch's."""
    generator = torch.Generator().manual_seed(0)
    x = (4 * torch.randn(7, 101, generator=generator)).bfloat16()
    exact = x.float().requires_grad_()
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.enable_grad():
        for kind in _GELU:
            y = torch.nn.functional.gelu(exact, approximate=kind)
            pairs += zip((y, *torch.autograd.grad(y.sum(), exact)), made.gelu(x, kind), strict=True)
        labels = torch.arange(7)
        losses = torch.nn.functional.cross_entropy(exact, labels, reduction="none")
        slopes = torch.autograd.grad(losses.sum(), exact)[0]
    got = made.cross_entropy(x, labels, torch.ones(7), None, with_slopes=True)
    pairs += [(e, g) for e, g in zip((losses, slopes), got, strict=True) if g is not None]
    for expected, found in pairs:
        difference = float((expected.detach() - found.float()).abs().max())
        if not difference <= _TOLERANCE * float(expected.detach().abs().max()):
            raise ArithmeticError(f"results differ from torch's by {difference:.2e}")
