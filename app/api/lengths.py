"""How many positions a version has in each attention module.

The catalog knows those of decoder self-attention; the others are read from the header of the
version's file, and only where the base model has other modules.
"""

from __future__ import annotations

from collections.abc import Mapping

from app.api.services import Services
from app.errors import PolyprefixError
from app.prefix.header import LENGTH_BYTES, MAX_HEADER_BYTES, header_length, parse_header
from app.prefix.spec import MODULES
from app.registry.records import Version


def module_lengths(services: Services, tenant: str, version: Version) -> Mapping[str, int]:
    """Module → positions, of the modules that the version has; reads a file.

    What is known without the file is answered if that is lost or damaged.
    """
    known = {"decoder": version.length}
    if services.model.spec.modules.keys() <= known.keys():
        return known
    try:
        return _from_header(services, tenant, version)
    except PolyprefixError:
        return known


def _from_header(services: Services, tenant: str, version: Version) -> Mapping[str, int]:
    with services.registry.open_content(tenant, version) as file:
        first = file.read(LENGTH_BYTES)
        raw = file.read(header_length(first, MAX_HEADER_BYTES + LENGTH_BYTES))
    header = parse_header(raw, LENGTH_BYTES + len(raw) + version.nbytes)
    keys = {module: header.tensors.get(f"{module}.keys") for module in MODULES}
    return {
        module: entry.shape[2]
        for module, entry in keys.items()
        if entry is not None and len(entry.shape) == 4
    }
