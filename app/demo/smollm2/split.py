"""Training and held-out files for the prefix `restaurants`, cut from E2E's development split.

    python -m app.demo.smollm2.split --data FOLDER --out FOLDER

Held-out inputs have five or more slots, names that no training input has, and combinations of
values that no training input has. Training targets say every slot of their input and nothing else.
Names, landmarks, foods and kinds of place are also replaced by others, so that the model copies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from app.demo.records import clean, read_lines
from app.demo.smollm2.slots import Slots, linearised, slots_of, wrong_slots

HELD_OUT_NAMES = ("The Eagle", "Cocum", "Cotto", "Browns Cambridge", "Wildwood")
"""Restaurants whose names training never sees."""
HELD_OUT_SHARE = 0.4
"""Share of the inputs about them that is held out; the others get other names."""
MIN_SLOTS = 5
TARGETS = 3
"""Training targets for each input at most."""
VARIANTS = 2
"""Copies of each training input with other values."""
NAMES = (
    *("Blue Lantern", "The Oak Table", "Marlowe's", "Saffron House", "The Copper Kettle", "Rosso"),
    *("Green Door", "The Old Ferry", "Lucky Star", "Juniper", "The Harbour Light", "Pepe Verde"),
    *("Maple Corner", "The Silver Fox", "Tandem", "Olive & Thyme", "The Red Barn", "Bellavista"),
    *("Quay West", "The Night Owl", "Sakura", "Cedar Lodge", "The Millstone", "Amber Room"),
    *("Dragon Gate", "The Walnut Tree", "Felice", "Stone Bridge Inn", "The Tin Cup", "Zephyr"),
    *("Hazel Court", "The Brass Bell", "Nonna Rosa", "Lime Street", "The White Hart", "Coriander"),
    *("Peacock Hall", "The Garden Gate", "Bonsai", "Harvest Moon", "The Anchor", "Kingfisher"),
    *("Vine House", "The Pear Tree", "Sirocco", "Market Hall", "The Crooked Spoon", "Orchid"),
)
LANDMARKS = (
    *("The Corn Exchange", "Park Street Station", "Hotel Astoria", "The Round Church", "Toft Hall"),
    *("Noodle Palace", "The Black Swan", "Café Lisboa", "Trinity Library", "The Museum Inn"),
    *("Pizza Roma", "Jubilee Bridge", "The Royal Oak", "Grand Arcade", "Kettle's Yard", "Yippie"),
    *("The Six Bells", "Station Hotel", "Curry Garden", "Fenners", "The Bath House", "Savoy Grill"),
)
FOODS = ("Italian", "French", "Indian", "Japanese", "Thai", "Greek", "Mexican", "Spanish")
KINDS = ("restaurant", "pub", "bar")
CHOICES: Mapping[str, Sequence[str]] = {
    "name": NAMES,
    "near": LANDMARKS,
    "food": FOODS,
    "eatType": KINDS,
}
Record = dict[str, Any]


def is_held_out(source: str) -> bool:
    """Whether an input is in the held-out file."""
    slots = slots_of(source)
    if slots["name"] not in HELD_OUT_NAMES or len(slots) < MIN_SLOTS:
        return False
    number = int.from_bytes(hashlib.sha256(source.encode()).digest()[:4])
    return number < HELD_OUT_SHARE * 2**32


def training_records(records: Sequence[Record], seed: int = 1) -> Iterator[Record]:
    """Every input that is not held out, with complete targets, and its variants."""
    rng = random.Random(seed)
    for record in records:
        if is_held_out(record["input"]):
            continue
        complete = [
            target
            for target in dict.fromkeys(map(_tidy, record["targets"]))
            if wrong_slots(record["input"], target) == ([], [])
        ]
        complete = _most_typical_first(complete)
        slots = slots_of(record["input"])
        if slots["name"] not in HELD_OUT_NAMES and complete:
            yield {"input": record["input"], "targets": complete[:TARGETS]}
        for number in range(VARIANTS):
            chosen = complete[number * TARGETS :][:TARGETS] or complete[:TARGETS]
            yield from _variant(slots, chosen, rng)


def _variant(slots: Slots, targets: Sequence[str], rng: random.Random) -> Iterator[Record]:
    """The same facts about another place: one input for each target."""
    for target in targets:
        changed, text = dict(slots), target
        for key, values in CHOICES.items():
            keep = key != "name" and rng.random() < 0.4
            if key not in slots or keep:
                continue
            changed[key] = rng.choice(values)
            text = _replaced(text, slots[key], changed[key])
        if wrong_slots(linearised(changed), text) == ([], []):
            yield {"input": linearised(changed), "targets": [text]}


def _replaced(text: str, old: str, new: str) -> str:
    """The text about another value; `a` and `an` follow the new word."""
    article = "an" if new[0].lower() in "aeiou" else "a"

    def write(match: re.Match[str]) -> str:
        if match[1] is None:
            return new
        return (article.capitalize() if match[1][0].isupper() else article) + " " + new

    return re.sub(rf"(?<!\w)(?:(an?) )?{re.escape(old)}(?!\w)", write, text, flags=re.IGNORECASE)


def _most_typical_first(texts: Sequence[str]) -> list[str]:
    """The texts, first those that share most pairs of words with the others."""
    pairs = [Counter(pairwise(text.lower().split())) for text in texts]
    shares = [sum((own & other).total() for other in pairs) / own.total() for own in pairs]
    return [text for _, text in sorted(zip(shares, texts, strict=True), key=lambda x: -x[0])]


def _tidy(target: str) -> str:
    """One line, with a capital at the start and a full stop at the end."""
    text = clean(target)
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else text + "."


def write_files(data: Path, out: Path) -> dict[str, int]:
    """Write `restaurants-train.jsonl` and `restaurants-held-out.jsonl`; lines by file name."""
    records = list(read_lines(data / "e2e" / "dev.jsonl"))
    held_out = [
        {"input": record["input"], "targets": list(map(clean, record["targets"]))}
        for record in records
        if is_held_out(record["input"])
    ]
    files = {
        "restaurants-train.jsonl": list(training_records(records)),
        "restaurants-held-out.jsonl": held_out,
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in lines)
        (out / name).write_text(text, encoding="utf-8")
    return {name: len(lines) for name, lines in files.items()}


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m app.demo.smollm2.split")
    parser.add_argument("--data", type=Path, required=True, help="folder with e2e/dev.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSONL files")
    options = parser.parse_args()
    write_files(options.data, options.out)


if __name__ == "__main__":
    _main()
