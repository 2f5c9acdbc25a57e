"""Which base model a command is told: a folder, a hub id, or one of ours by its name."""

from __future__ import annotations

from pathlib import Path


def base_model(name: str | None) -> str:
    """What to load: the first demo model if no name is given; what is here goes before ours."""
    from app.settings import DEMO_MODEL

    if name is None:
        return str(DEMO_MODEL)
    folder = DEMO_MODEL.parent / name
    is_demo = folder.parent == DEMO_MODEL.parent and folder.is_dir() and not Path(name).exists()
    return str(folder) if is_demo else name
