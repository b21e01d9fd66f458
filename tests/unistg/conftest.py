"""Toy videos with captions, and providers that worker processes can import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tubelet.world.files import make_world


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos, and captions of every thing in them with loose spans; some that cannot be used."""
    folder = tmp_path_factory.mktemp("toys")
    make_world(folder, n=4, seed=5, height=96)
    rows: list[dict[str, Any]] = []
    for line in (folder / "annotations.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "scene" not in record:
            continue
        for k, actor in enumerate(record["scene"]["actors"]):
            rows.append(
                {
                    "id": f"{record['id']}/{k}",
                    "video": Path(record["video"]).name,
                    "text": f"a {actor['colour']} {actor['shape']} moves around",
                    "start_s": 0.0,
                    "end_s": record["duration_s"],
                }
            )
    rows.append({**rows[0], "id": "no-video", "video": "gone.mp4"})
    rows.append({**rows[0], "id": "outside", "start_s": 90.0, "end_s": 99.0, "duration_s": 5.0})
    rows.append({**rows[0], "id": "no-noun", "text": "and then it moves away quickly"})
    rows.append(rows[0])  # a duplicate
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(__file__).resolve().parent)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", here)
