"""From what a request calls its model to prefixes on the device.

A name that does not resolve is an error; the base model never answers in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.errors import BaseModelMismatch, InvalidRequest, PrefixNotFound
from app.prefix.prefix import Prefix
from app.prefix.reference import MAX_PARTS, PrefixReference, parse_model_field
from app.prefix.spec import BaseModelSpec
from app.registry.registry import Registry
from app.registry.types import Resolved, Version
from app.runtime.prefix_cache import Lease, PrefixCache, PrefixKey
from app.runtime.workers import WorkerPool

_MAX_SHOWN = 80
_TIERS = ("device", "host", "store")


@dataclass(frozen=True, slots=True)
class SelectedPrefix:
    """One prefix on the device, with the name by which the tenant knows it.

    The name of another tenant's prefix starts with the owner's id. Without a lease somebody else
    keeps the prefix on the device.
    """

    name: str
    digest: str
    prefix: Prefix
    lease: Lease | None = None


class PrefixSelection:
    """The prefixes that answer a request, in their order; none for the base model alone.

    `template` says how a plain input becomes a prompt, and `decoding` holds default generation
    parameters. Both come from the prefixes' metadata, and the first prefix that sets one wins.
    """

    def __init__(self, selected: Sequence[SelectedPrefix]) -> None:
        self.selected = selected
        self.prefixes: tuple[Prefix, ...] = ()
        self.names: list[str] = []
        self.digests: list[str] = []
        self.template: str | None = None
        self.decoding: dict[str, Any] = {}
        for one in selected:
            metadata = one.prefix.metadata
            self.prefixes = (*self.prefixes, one.prefix)
            self.names.append(one.name)
            self.digests.append(one.digest)
            if self.template is None:
                self.template = metadata.input_template
            self.decoding = {**metadata.decoding, **self.decoding}

    @property
    def headers(self) -> dict[str, str]:
        """The reply's headers that say what served it; the slowest tier counts."""
        slowest = -1
        for one in self.selected:
            if one.lease is not None:
                slowest = max(slowest, _TIERS.index(one.lease.tier))
        if slowest < 0:
            return {}
        return {"x-prefix-version": ",".join(self.digests), "x-prefix-tier": _TIERS[slowest]}

    def borrowed(self) -> PrefixSelection:
        """The same prefixes without their leases, for work that ends before this is released."""
        return PrefixSelection([replace(one, lease=None) for one in self.selected])

    def release(self) -> None:
        """Give the leases back. Harmless when they have been given back already."""
        for one in self.selected:
            if one.lease is not None:
                one.lease.release()


@dataclass(frozen=True)
class PrefixSelector:
    """Resolves names in `registry`, in threads of `catalog` if need be, and leases prefixes."""

    spec: BaseModelSpec
    registry: Registry
    catalog: WorkerPool
    cache: PrefixCache

    async def select(
        self,
        tenant: str,
        model: str | None,
        prefixes: Sequence[str] | None = None,
        *,
        user: str | None = None,
    ) -> PrefixSelection:
        """Resolve and lease what `model` names, or the base model with the list `prefixes`.

        A `user` gets the same version of a split alias each time; without one it is drawn.

        Raises InvalidRequest, PrefixNotFound, BaseModelMismatch, or what loading raises.
        """
        selected: list[SelectedPrefix] = []
        try:
            for reference in self._references(model, prefixes):
                version = await self.resolve(tenant, reference, user)
                lease = await self.cache.acquire(PrefixKey(version.owner, version.digest))
                name = version.name
                if version.tenant != tenant:
                    name = f"{version.tenant}/{name}"
                selected.append(SelectedPrefix(name, version.digest, lease.prefix, lease))
        except BaseException:
            PrefixSelection(selected).release()
            raise
        return PrefixSelection(selected)

    async def resolve(
        self, tenant: str, reference: PrefixReference, user: str | None = None
    ) -> Resolved:
        """The version that a reference stands for; BaseModelMismatch if it cannot serve here."""
        version = self.registry.resolve_cached(tenant, reference, user)
        if version is None:
            version = await self.catalog.run(tenant, self.registry.resolve, tenant, reference, user)
        if version.base_fingerprint not in (None, self.spec.fingerprint):
            raise BaseModelMismatch(
                f"prefix '{version.name}' was trained on base model {ascii(version.base_model)}, "
                f"not on {self.spec.model_id!r}, which this server has",
                param="model",
            )
        return version

    async def version(self, found: Resolved) -> Version:
        """All that is known of a version that was resolved."""
        version = self.registry.get_version
        return await self.catalog.run(found.tenant, version, found.tenant, found.name, found.digest)

    def parse(self, model: str) -> tuple[PrefixReference, ...]:
        """The prefixes that a name stands for; PrefixNotFound if no prefix can have it.

        The base model's id and a colon may precede the name (SGLang's form).
        """
        try:
            return parse_model_field(model.removeprefix(f"{self.spec.model_id}:"))
        except InvalidRequest as error:
            if model.count("+") >= MAX_PARTS:
                raise
            raise PrefixNotFound(
                f"model {ascii(model[:_MAX_SHOWN])} does not exist: the base model here is "
                f"{self.spec.model_id!r}, and no prefix has such a name ({error.message}); "
                "GET /v1/models lists what there is",
                param="model",
            ) from error

    def _references(
        self, model: str | None, prefixes: Sequence[str] | None
    ) -> tuple[PrefixReference, ...]:
        base = self.spec.model_id
        if prefixes is None:
            return () if model in (None, base) else self.parse(model)
        if model not in (None, base):
            raise InvalidRequest(
                f"give either a prefix as model or the list prefixes (with model {base!r})",
                param="prefixes",
            )
        if len(prefixes) > MAX_PARTS:
            raise InvalidRequest(f"at most {MAX_PARTS} prefixes can be composed", param="prefixes")
        return tuple(part for text in prefixes for part in self.parse(text))
