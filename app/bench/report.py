"""Print results: a short table for people, then one line of JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def with_ratios(
    bench: str, device: str, ours: Mapping[str, float], peers: Mapping[str, float]
) -> dict[str, Any]:
    """The result as printed; a ratio is our tokens per second divided by the peer's."""
    return {
        "bench": bench,
        "device": device,
        "ours": {name: round(value, 2) for name, value in ours.items()},
        "peers": {name: {"tokens_per_s": round(value, 2)} for name, value in peers.items()},
        "ratio": {name: round(ours["tokens_per_s"] / value, 3) for name, value in peers.items()},
    }


def print_result(result: Mapping[str, Any]) -> None:
    """Print the table, then the line of JSON."""
    console = Console()
    title = f"{result['bench']} on {result['device']}"
    if "tokens_per_s" in result["ours"]:
        table = Table("", "tokens/s", "ours is", title=title)
        table.add_row("polyprefix", f"{result['ours']['tokens_per_s']:.1f}", "")
        for name, figures in result["peers"].items():
            ratio = result["ratio"].get(name)
            times = "" if ratio is None else f"{ratio:.2f} ×"
            table.add_row(name, f"{figures['tokens_per_s']:.1f}", times)
        console.print(table)
        for name, ratio in result["ratio"].items():
            if name not in result["peers"]:
                console.print(f"{name}: {ratio:.2f} ×")
    else:
        console.print(title)
    for name, value in result["ours"].items():
        if name != "tokens_per_s":
            console.print(f"{name}: {value}")
    console.out(json.dumps(result), highlight=False)
