"""How many positions a version has in each attention module.

The catalog knows them for all versions but old ones. Those have the lengths beyond decoder
self-attention in the header of their file; it is read if the base model has other modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends

from app.api.dependencies import ModelDep, RegistryDep, WorkersDep
from app.errors import PolyprefixError
from app.prefix.header import LENGTH_BYTES, MAX_HEADER_BYTES, header_length, parse_header
from app.prefix.spec import MODULES
from app.registry.registry import Registry
from app.registry.types import Version
from app.runtime.workers import WorkerPool


@dataclass(frozen=True)
class ModuleLengths:
    """Looks up the lengths of versions; `pool` reads the store if the catalog does not know."""

    registry: Registry
    pool: WorkerPool
    is_decoder_alone: bool

    async def of(self, tenant: str, version: Version) -> Mapping[str, int]:
        """Module → positions, of the modules that the version has.

        What is known without the file is answered if that is lost or damaged.
        """
        if version.lengths is not None:
            return version.lengths
        if self.is_decoder_alone:
            return {"decoder": version.length}
        try:
            return await self.pool.run(tenant, self._from_header, tenant, version)
        except PolyprefixError:
            return {"decoder": version.length}

    def _from_header(self, tenant: str, version: Version) -> Mapping[str, int]:
        start = self.registry.content_start(tenant, version, LENGTH_BYTES + MAX_HEADER_BYTES)
        length = header_length(start[:LENGTH_BYTES], MAX_HEADER_BYTES + LENGTH_BYTES)
        raw = start[LENGTH_BYTES : LENGTH_BYTES + length]
        header = parse_header(raw, LENGTH_BYTES + len(raw) + version.nbytes)
        keys = {module: header.tensors.get(f"{module}.keys") for module in MODULES}
        return {
            module: entry.shape[2]
            for module, entry in keys.items()
            if entry is not None and len(entry.shape) == 4
        }


async def get_lengths(registry: RegistryDep, workers: WorkersDep, model: ModelDep) -> ModuleLengths:
    """The lengths of this server's versions."""
    return ModuleLengths(registry, workers.store, model.spec.modules.keys() <= {"decoder"})


LengthsDep = Annotated[ModuleLengths, Depends(get_lengths)]
