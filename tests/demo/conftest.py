"""A small data folder in the form of the real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

WEBNLG = [
    {
        "input": "Alan_Bean : occupation : Test_pilot | Alan_Bean : mission : Apollo_12",
        "targets": [
            "The test pilot Alan Bean flew on @ Apollo 12.",
            "Alan Bean flew on Apollo 12.",
        ],
        "category": "Astronaut",
    },
    {
        "input": 'Aarhus_Airport : runwayLength : 2777.0 | Aarhus_Airport : code : "AAR"',
        "targets": ["Aarhus Airport (AAR) has a runway of 2777.0 metres."],
        "category": "Airport",
    },
]
DART = [
    {
        "input": f"Team {number} : wins : {number}",
        "targets": [f"Team {number} has {number} wins."],
        "source": ["WikiSQL_lily"],
    }
    for number in range(40)
] + [
    {"input": "Mill : eattype : pub", "targets": ["SECRET of e2e"], "source": ["e2e"]},
    {"input": "A : b : c", "targets": ["SECRET of webnlg"], "source": ["webnlg"]},
]
E2E = [
    {"input": f"name : N{number} | area : riverside", "targets": ["SECRET one", "SECRET two"]}
    for number in range(60)
]
TEST = [{"input": "A : b : c", "targets": ["OFFICIAL TEST"], "source": [], "category": "Airport"}]
SUMMARIES = [{"input": "A long abstract about nets.", "targets": ["Nets."]}]
PROSE = "\n\n".join(["We hold these truths to be plain and we will say them again. " * 2] * 5)


def _write(path: Path, records: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All the files that pretraining reads, and those that it must not read: SECRET is for
    prefixes alone, OFFICIAL TEST is for nothing."""
    root = tmp_path_factory.mktemp("data")
    _write(root / "webnlg" / "train.jsonl", list(WEBNLG))
    secret = {**WEBNLG[0], "targets": ["SECRET of the development split"]}
    _write(root / "webnlg" / "dev.jsonl", [secret])
    _write(root / "dart" / "dev.jsonl", list(DART))
    _write(root / "e2e" / "dev.jsonl", list(E2E))
    _write(root / "scitldr" / "train.jsonl", list(SUMMARIES))
    unseen = {"input": "Another abstract,\nof two lines.", "targets": ["SECRET summary."]}
    _write(root / "scitldr" / "dev.jsonl", [*SUMMARIES, unseen])
    _write(root / "dialogsum" / "dev.jsonl", list(SUMMARIES))
    for name in ("webnlg", "dart", "e2e", "scitldr", "dialogsum"):
        _write(root / name / "test.jsonl", list(TEST))
    (root / "prose").mkdir()
    (root / "prose" / "speeches.txt").write_text(PROSE, encoding="utf-8")
    return root
