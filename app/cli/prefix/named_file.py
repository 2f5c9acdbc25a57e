"""Where a prefix lies that an option names: a file, or a version in a store."""

from __future__ import annotations

from pathlib import Path

from app.errors import InvalidRequest, PrefixNotFound


def prefix_file(name: str, store: Path | None) -> Path:
    """The file that `name` is, or that it refers to in the store: `e2e`, `e2e@stable`.

    Raises InvalidRequest or PrefixNotFound.
    """
    from app.prefix.reference import parse_model_field
    from app.registry.shipped.manifest import shipped_file

    path = Path(name)
    if path.is_file():
        return path
    if store is None:
        raise PrefixNotFound(
            f"there is no file {name}; a name needs the store that has it (--store)"
        )
    references = parse_model_field(name)
    if len(references) != 1:
        raise InvalidRequest(f"one prefix is needed here, not the composition {name}")
    return shipped_file(store, references[0])
