"""How many positions a version has in each attention module.

The catalog knows them since versions are stored with them; of older ones those beyond decoder
self-attention are read from the header of the file, if the base model has other modules.
"""

from __future__ import annotations

from collections.abc import Mapping

from app.api.services import Services
from app.errors import PolyprefixError
from app.prefix.header import LENGTH_BYTES, MAX_HEADER_BYTES, header_length, parse_header
from app.prefix.spec import MODULES
from app.registry.types import Version


def module_lengths(services: Services, tenant: str, version: Version) -> Mapping[str, int]:
    """Module → positions, of the modules that the version has; reads the start of a file.

    What is known without the file is answered if that is lost or damaged.
    """
    known = known_lengths(services, version)
    if known is not None:
        return known
    try:
        return _from_header(services, tenant, version)
    except PolyprefixError:
        return {"decoder": version.length}


def known_lengths(services: Services, version: Version) -> Mapping[str, int] | None:
    """As `module_lengths`, without any I/O; None if that needs the file."""
    if version.lengths is not None:
        return version.lengths
    is_decoder_alone = services.model.spec.modules.keys() <= {"decoder"}
    return {"decoder": version.length} if is_decoder_alone else None


def _from_header(services: Services, tenant: str, version: Version) -> Mapping[str, int]:
    start = services.registry.content_start(tenant, version, LENGTH_BYTES + MAX_HEADER_BYTES)
    length = header_length(start[:LENGTH_BYTES], MAX_HEADER_BYTES + LENGTH_BYTES)
    raw = start[LENGTH_BYTES : LENGTH_BYTES + length]
    header = parse_header(raw, LENGTH_BYTES + len(raw) + version.nbytes)
    keys = {module: header.tensors.get(f"{module}.keys") for module in MODULES}
    return {
        module: entry.shape[2]
        for module, entry in keys.items()
        if entry is not None and len(entry.shape) == 4
    }
