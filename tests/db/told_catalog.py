"""A catalog without a database, whose feed says what a test tells it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.db.change_feed import Listener
from app.db.change_log import Change


class ToldFeed:
    """The feed of a catalog that is always fresh; `tell` passes on what a test says has changed."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        self.listeners.append(listener)

    def fresh(self) -> bool:
        return True

    def tell(self, epoch: int, changes: Sequence[Change] | None) -> None:
        for listener in self.listeners:
            listener(epoch, changes)


class ToldCatalog:
    """As much of a catalog as a cache needs that nobody reads through."""

    def __init__(self) -> None:
        self.feed: Any = ToldFeed()
