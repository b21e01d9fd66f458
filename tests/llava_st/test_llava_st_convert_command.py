"""`tubelet convert llava-st`: there and back again on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tubelet import cli


def call(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["tubelet", "convert", *map(str, args)])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def test_there_and_back_is_exact(
    official_folder: Path,
    geometry: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    heads = ("--vision-heads", geometry.vision_heads, "--packer-heads", geometry.packer_heads)
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert call(monkeypatch, "llava-st", official_folder, ours, *heads) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(ours) and "fast packer" in told.err and "dtype" in told.err
    assert call(monkeypatch, "llava-st", ours, back, "--to-official") == 0
    names = sorted(p.name for p in official_folder.iterdir())
    assert sorted(p.name for p in back.iterdir()) == names
    assert all((back / name).read_bytes() == (official_folder / name).read_bytes() for name in names)


def test_mistakes_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "llava-mt", tmp_path, tmp_path / "out") == 1
    assert "llava-st" in capsys.readouterr().err
    assert call(monkeypatch, "llava-st", tmp_path, tmp_path / "out") == 1
    told = capsys.readouterr()
    assert told.out == "" and "config.json" in told.err and len(told.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
