"""Training and held-out files for the prefixes on restaurants, cut from E2E's development split.

    python -m app.demo.e2e.split --data FOLDER --out FOLDER

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

from app.demo.corpus import Corpus
from app.demo.e2e.slots import AREAS, Slots, linearised, slots_of, wrong_slots
from app.demo.e2e.wording import told
from app.demo.records import clean, read_lines, read_sources
from app.demo.substitution import NamePool

HELD_OUT_NAMES = ("The Eagle", "Cocum", "Cotto", "Browns Cambridge", "Wildwood")
"""Restaurants whose names training never sees."""
HELD_OUT_SHARE = 0.4
"""Share of the inputs about them that is held out; the others get other names."""
MIN_SLOTS = 5
TARGETS = 3
"""Training targets for each input at most."""
VARIANTS = 2
"""Copies of each training input with other values."""
TOLD = 6000
"""Inputs for the training in one wording."""
OTHER_SLOTS = (2, 3, 5, 6, 10, 20, 27, 27)
"""How often such an input has no, one, two, … seven slots besides its name."""
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
TOLD_VALUES: Mapping[str, Sequence[str]] = {
    "name": (*NAMES, *LANDMARKS),
    "eatType": ("coffee shop", "coffee shop", *KINDS),
    "food": ("Chinese", "English", "Fast food", *FOODS),
    "priceRange": ("cheap", "moderate", "high", "less than £20", "£20-25", "more than £30"),
    "customer rating": ("low", "average", "high", "1 out of 5", "3 out of 5", "5 out of 5"),
    "area": AREAS,
    "familyFriendly": ("yes", "no"),
    "near": (*LANDMARKS, *NAMES),
}
"""All values of the training in one wording, in the order of E2E's slots."""
NEW_NAMES = ("name", "near")
"""Slots that get a name of their own, so that the model copies them."""
_PLAIN_NAME = re.compile(r"[^\W\d_][\w '’&.-]{2,31}")
"""Names without marks that separate slots."""
_NAME_WORDS = sorted(
    {word for name in (*NAMES, *LANDMARKS) for word in name.split()} - {"The", "&"}
)
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
        complete = _most_typical_first(_complete(record))
        slots = slots_of(record["input"])
        if slots["name"] not in HELD_OUT_NAMES and complete:
            yield {"input": record["input"], "targets": complete[:TARGETS]}
        for number in range(VARIANTS):
            chosen = complete[number * TARGETS :][:TARGETS] or complete[:TARGETS]
            yield from _variant(slots, chosen, rng)


def told_records(records: Sequence[Record], pool: NamePool, seed: int = 1) -> list[Record]:
    """Invented inputs in one wording, for a small model; most have six slots or more.

    Names are those of this module, or of `pool`. No input has the values of a held-out one,
    whatever its name.
    """
    rng = random.Random(seed)
    taken = {_values(slots_of(r["input"])) for r in records if is_held_out(r["input"])}
    made: list[Record] = []
    while len(made) < TOLD:
        slots = _invented(pool, rng)
        source, text = linearised(slots), told(slots)
        fits = slots["name"] not in HELD_OUT_NAMES and _values(slots) not in taken
        if fits and wrong_slots(source, text) == ([], []):  # "Red River" also names an area
            made.append({"input": source, "targets": [text]})
    return made


def _invented(pool: NamePool, rng: random.Random) -> Slots:
    """A place with a name and up to seven other slots, in E2E's order."""
    count = rng.choices(range(8), OTHER_SLOTS)[0]
    chosen = {"name", *rng.sample([key for key in TOLD_VALUES if key != "name"], count)}
    slots = {key: rng.choice(values) for key, values in TOLD_VALUES.items() if key in chosen}
    return slots | {key: _name(pool, rng) for key in NEW_NAMES if key in slots}


def _name(pool: NamePool, rng: random.Random) -> str:
    """A name of this module, two words of such names, or a name of the pool."""
    choice = rng.random()
    if choice < 0.2:
        return rng.choice((*NAMES, *LANDMARKS))
    if choice < 0.5:
        return rng.choice(("The ", "", "")) + " ".join(rng.sample(_NAME_WORDS, 2))
    while True:
        name = pool.name(rng)
        if _PLAIN_NAME.fullmatch(name):
            return name


def _values(slots: Slots) -> tuple[tuple[str, str], ...]:
    """A combination of values: the slots without the name."""
    return tuple((key, value) for key, value in slots.items() if key != "name")


def _complete(record: Record) -> list[str]:
    """The targets that say every slot and nothing else."""
    return [
        target
        for target in dict.fromkeys(map(_tidy, record["targets"]))
        if wrong_slots(record["input"], target) == ([], [])
    ]


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
    """Write training files for SmolLM2 and the demo models, and what both hold out.

    Returns the number of lines by file name.
    """
    records = list(read_lines(data / "e2e" / "dev.jsonl"))
    held_out = [
        {"input": record["input"], "targets": list(map(clean, record["targets"]))}
        for record in records
        if is_held_out(record["input"])
    ]
    files = {
        "restaurants-train.jsonl": list(training_records(records)),
        "e2e-train.jsonl": told_records(records, Corpus(read_sources(data)).pool),
        "restaurants-held-out.jsonl": held_out,
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in lines)
        (out / name).write_text(text, encoding="utf-8")
    return {name: len(lines) for name, lines in files.items()}


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m app.demo.e2e.split", description=write_files.__doc__
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with e2e/dev.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSONL files")
    options = parser.parse_args()
    write_files(options.data, options.out)


if __name__ == "__main__":
    _main()
