"""How a version comes from the store: read and checked like an upload, whoever wrote the file."""

from __future__ import annotations

from collections.abc import Callable

from app.errors import InvalidPrefix, NotUsableInDtype, PolyprefixError, PrefixOverflows
from app.model.frozen import FrozenModel
from app.prefix.codec import decode
from app.prefix.prefix import Prefix
from app.registry.registry import Registry
from app.runtime.prefix_cache import PrefixKey


def stored_prefixes(
    registry: Registry, model: FrozenModel, max_length: int
) -> Callable[[PrefixKey], Prefix]:
    """How the tiers read a version from the store: as unread as an upload."""

    def load(key: PrefixKey) -> Prefix:
        with registry.objects.local(key.owner, key.digest) as path:
            if path is None:
                raise PolyprefixError(f"the store has lost version {key.digest[:12]}")
            try:
                return decode(
                    path, model.spec, model.dtype, max_length=max_length, expect_digest=key.digest
                )
            except PrefixOverflows as error:
                served = str(model.dtype).removeprefix("torch.")
                raise NotUsableInDtype(
                    f"version {key.digest[:12]} is not usable in {served}, in which this server "
                    "computes: it holds values that overflow in it; a server with "
                    "POLYPREFIX_DTYPE=float32 can use it"
                ) from error
            except InvalidPrefix as error:
                # it was valid when it was uploaded: the fault is the store's, not the client's
                raise PolyprefixError(
                    f"the store's file of version {key.digest[:12]} is damaged ({error.message}); "
                    "delete the version and upload it again"
                ) from error

    return load
