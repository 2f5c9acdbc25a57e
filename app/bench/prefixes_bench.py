"""`polyprefix bench prefixes`: throughput with more and more distinct prefixes in rotation.

Requests take the server's path: name → version → lease → engine. The device tier holds 100
prefixes.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from app.bench.load import random_prefix
from app.bench.measure import in_own_process
from app.bench.settings import BenchSettings
from app.bench.shapes import model_folder
from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.request import GenerationRequest, RequestFailed, SamplingParams
from app.model.load import load_model
from app.model.threads import run_in_fresh_thread
from app.prefix.codec import encode
from app.prefix.reference import PrefixReference
from app.registry.open_registry import open_registry
from app.registry.registry import Registry
from app.registry.types import VersionInfo
from app.runtime.prefix_cache import Lease, PrefixCache, PrefixKey
from app.runtime.prefix_loader import stored_prefixes

_TENANT = "bench"
_ON_DEVICE, _MAX_LENGTH = 100, 512


def run_prefixes(
    settings: BenchSettings, *, counts: Sequence[int], length: int, rows: int, new: int
) -> dict[str, Any]:
    """Tokens per second with each count of distinct prefixes, and the time to resolve a name."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(settings.model, Path(scratch))
        figures = in_own_process(
            _measure, folder, scratch, settings, tuple(counts), length, rows, new
        )
    throughput = figures["tokens_per_s"]
    first = throughput[str(counts[0])]
    return {
        "bench": "prefixes",
        "device": settings.device,
        "ours": {"tokens_per_s": round(throughput[str(counts[-1])], 2)},
        "peers": {},
        "ratio": {f"{count} prefixes": throughput[str(count)] / first for count in counts},
        "by_count": {name: round(value, 2) for name, value in throughput.items()},
        "resolve": figures["resolve"],
    }


def _measure(
    folder: str,
    scratch: str,
    settings: BenchSettings,
    counts: Sequence[int],
    length: int,
    rows: int,
    new: int,
) -> dict[str, Any]:
    torch.set_num_threads(settings.threads)
    road = _Road(folder, Path(scratch), settings, length, max(counts), rows)
    try:
        return {
            "tokens_per_s": asyncio.run(road.throughput(counts, rows, new)),
            "resolve": asyncio.run(road.resolve_times()),
        }
    finally:
        road.close()


def _engine(folder: str, dtype: str, rows: int) -> Engine:
    model = load_model(folder, device="cpu", dtype=dtype)
    return Engine(model, EngineConfig(max_rows=rows, kv_bytes=4 << 30))


class _Road:
    """Registry, prefix cache and engine with `count` prefixes in the store."""

    def __init__(
        self,
        folder: str,
        scratch: Path,
        settings: BenchSettings,
        length: int,
        count: int,
        rows: int,
    ) -> None:
        self._engine = run_in_fresh_thread(_engine, folder, settings.dtype, rows)
        self._model = self._engine.model
        self._registry = open_registry(f"sqlite:///{scratch}/catalog.sqlite", scratch / "store")
        self._registry.ensure_tenant(_TENANT)
        for index in range(count):
            _add_prefix(self._registry, self._model, index, length)
        shape = self._model.spec.decoder
        one = 2 * shape.layers * shape.kv_heads * length * shape.head_dim
        self._device_bytes = _ON_DEVICE * one * self._model.dtype.itemsize
        self._engine.start()
        self._sent = 0

    def close(self) -> None:
        self._engine.stop()
        self._registry.close()

    async def throughput(self, counts: Sequence[int], rows: int, new: int) -> dict[str, float]:
        """Tokens per second with each number of distinct prefixes in rotation."""
        results: dict[str, float] = {}
        for count in counts:
            tiers = self._tiers()
            await self._rounds(tiers, count, rows, 2 * rows, new)
            requests = max(4 * rows, 2 * min(count, 4 * rows))
            started = time.perf_counter()
            await self._rounds(tiers, count, rows, requests, new)
            results[str(count)] = requests * new / (time.perf_counter() - started)
            await tiers.close()
        return results

    async def resolve_times(self) -> dict[str, float]:
        """Median microseconds from a name to a prefix on the device: warm, and from the store."""
        tiers = self._tiers()
        cold, warm = [], []
        for index in range(50):
            started = time.perf_counter()
            (await self._lease(tiers, index)).release()
            cold.append(time.perf_counter() - started)
            started = time.perf_counter()
            (await self._lease(tiers, index)).release()
            warm.append(time.perf_counter() - started)
        await tiers.close()
        return {
            "cold_us": round(1e6 * statistics.median(cold), 1),
            "warm_us": round(1e6 * statistics.median(warm), 1),
        }

    async def _rounds(
        self, tiers: PrefixCache, count: int, rows: int, requests: int, new: int
    ) -> None:
        """Run `requests` requests, `rows` at a time, each with the next prefix."""
        places = asyncio.Semaphore(rows)

        async def one(index: int) -> None:
            async with places:
                await self._generate(tiers, index % count, new)

        await asyncio.gather(*(one(index) for index in range(requests)))

    async def _generate(self, tiers: PrefixCache, index: int, new: int) -> None:
        lease = await self._lease(tiers, index)
        self._sent += 1
        request = GenerationRequest(
            str(self._sent),
            _TENANT,
            tuple(range(1, 17)),
            SamplingParams(max_tokens=new, ignore_eos=True),
            (lease.prefix,),
        )
        try:
            async for event in self._engine.submit(request):
                if isinstance(event, RequestFailed):
                    raise event.error
        finally:
            lease.release()

    async def _lease(self, tiers: PrefixCache, index: int) -> Lease:
        reference = PrefixReference(_name(index))
        version = self._registry.resolve_cached(_TENANT, reference)
        if version is None:
            version = await asyncio.to_thread(self._registry.resolve, _TENANT, reference)
        return await tiers.acquire(PrefixKey(version.owner, version.digest))

    def _tiers(self) -> PrefixCache:
        model = self._model
        return PrefixCache(
            stored_prefixes(self._registry, model, _MAX_LENGTH),
            host_bytes=8 << 30,
            device_bytes=self._device_bytes,
            device=model.device,
            dtype=model.dtype,
        )


def _name(index: int) -> str:
    return f"p{index:05d}"


def _add_prefix(registry: Registry, model: Any, index: int, length: int) -> None:
    prefix = random_prefix(model.spec, length, index)
    info = VersionInfo(
        digest=prefix.digest,
        length=length,
        position_offset=length,
        dtype="float16",
        nbytes=prefix.nbytes,
        base_model=prefix.metadata.base_model,
        base_fingerprint=prefix.metadata.base_fingerprint,
    )
    with registry.stage() as staged:
        staged.write(encode(prefix))
        registry.add_version(_TENANT, _name(index), info, staged.path)
