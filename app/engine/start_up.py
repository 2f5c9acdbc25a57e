"""What computes before an engine serves: kernels are chosen, results compared with transformers."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.probe import probe
from app.model.frozen import FrozenModel

_log = logging.getLogger(__name__)

_LONG_S = 2.0


def prepare_engine(model: FrozenModel, config: EngineConfig) -> Engine:
    """An engine of the model, not started yet, whose ragged batches equal plain transformers.

    The log says what is done. Raises what `Engine` and `probe` raise.
    """
    with announced("choosing attention, and compiling it if need be"):
        engine = Engine(model, config)
    with announced(
        "comparing mixed batches with plain transformers (%s attention)", engine.decode_attention
    ):
        difference = probe(model, engine.attention)
    _log.info("start-up probe passed: ragged = plain within %.1e", difference)
    return engine


@contextmanager
def announced(what: str, *about: str) -> Iterator[None]:
    """Logs what begins, and how long it took if that was long."""
    text, started = what % about, time.monotonic()
    _log.info(text)
    yield
    took = time.monotonic() - started
    if took >= _LONG_S:
        _log.info("%s took %.1f s", text, took)
