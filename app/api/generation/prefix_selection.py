"""From what a request calls its model to prefixes on the device.

A name that does not resolve is an error; the base model never answers in its stead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.api.services import Services
from app.errors import BaseModelMismatch, InvalidRequest, PrefixNotFound
from app.prefix.prefix import Prefix
from app.prefix.reference import MAX_PARTS, PrefixReference, parse_model_field
from app.registry.types import Resolved, Version
from app.runtime.prefix_cache import Lease, PrefixKey

_MAX_SHOWN = 80
_TIERS = ("device", "host", "store")


@dataclass
class PrefixSelection:
    """What answers a request: prefixes in their order, leased; none for the base model alone.

    `names` are the prefixes' as this tenant calls them, those of others with their owner's id.
    `template` and `decoding` come from the prefixes' metadata; where several speak, the first.
    """

    model_field: str
    leases: list[Lease] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """The prefixes on the device."""
        return tuple(lease.prefix for lease in self.leases)

    @property
    def template(self) -> str | None:
        """How a plain input becomes a prompt, if a prefix says so."""
        for prefix in self.prefixes:
            if prefix.metadata.input_template is not None:
                return prefix.metadata.input_template
        return None

    @property
    def decoding(self) -> Mapping[str, Any]:
        """Default generation parameters of the prefixes."""
        merged: dict[str, Any] = {}
        for prefix in reversed(self.prefixes):
            merged.update(prefix.metadata.decoding)
        return merged

    @property
    def headers(self) -> dict[str, str]:
        """The reply's headers that say what served it; the slowest tier counts."""
        if not self.leases:
            return {}
        slowest = max(_TIERS.index(lease.tier) for lease in self.leases)
        return {"x-prefix-version": ",".join(self.digests), "x-prefix-tier": _TIERS[slowest]}

    def release(self) -> None:
        """Give the leases back."""
        for lease in self.leases:
            lease.release()


async def choose(
    services: Services,
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
    references = _references(services, model, prefixes)
    choice = PrefixSelection(model or services.model.spec.model_id)
    try:
        for reference in references:
            version = await resolve(services, tenant, reference, user)
            key = PrefixKey(version.owner, version.digest)
            choice.leases.append(await services.tiers.acquire(key))
            choice.digests.append(version.digest)
            owner = "" if version.tenant == tenant else f"{version.tenant}/"
            choice.names.append(owner + version.name)
    except BaseException:
        choice.release()
        raise
    return choice


async def resolve(
    services: Services, tenant: str, reference: PrefixReference, user: str | None = None
) -> Resolved:
    """The version that a reference stands for, for this base model and this user."""
    version = services.registry.resolve_cached(tenant, reference, user)
    if version is None:
        version = await services.workers.catalog.run(
            tenant, services.registry.resolve, tenant, reference, user
        )
    check_base(services, version)
    return version


def check_base(services: Services, version: Resolved | Version) -> None:
    """Raise BaseModelMismatch if the version names another base model than the served one."""
    spec = services.model.spec
    if version.base_fingerprint not in (None, spec.fingerprint):
        raise BaseModelMismatch(
            f"prefix '{version.name}' was trained on base model {ascii(version.base_model)}, not "
            f"on {spec.model_id!r}, which this server has",
            param="model",
        )


def named(services: Services, model: str) -> tuple[PrefixReference, ...]:
    """The prefixes that a name stands for; PrefixNotFound if no prefix can have it.

    Behind the base model's id and a colon they are the same (SGLang's form).
    """
    try:
        return parse_model_field(model.removeprefix(f"{services.model.spec.model_id}:"))
    except InvalidRequest as error:
        if model.count("+") >= MAX_PARTS:
            raise
        raise PrefixNotFound(
            f"model {ascii(model[:_MAX_SHOWN])} does not exist: the base model here is "
            f"{services.model.spec.model_id!r}, and no prefix has such a name ({error.message}); "
            "GET /v1/models lists what there is",
            param="model",
        ) from error


def _references(
    services: Services, model: str | None, prefixes: Sequence[str] | None
) -> tuple[PrefixReference, ...]:
    base = services.model.spec.model_id
    if prefixes is None:
        return () if model in (None, base) else named(services, model)
    if model not in (None, base):
        raise InvalidRequest(
            f"give either a prefix as model or the list prefixes (with model {base!r})",
            param="prefixes",
        )
    if len(prefixes) > MAX_PARTS:
        raise InvalidRequest(f"at most {MAX_PARTS} prefixes can be composed", param="prefixes")
    return tuple(part for text in prefixes for part in named(services, text))
