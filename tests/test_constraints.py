"""The files of versions agree with pyproject.toml: constraints-oldest.txt is its floors, constraints.txt none older."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENT = re.compile(r"^([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)")


def key(name: str) -> str:
    return name.lower().replace("_", "-")


def number(version: str) -> tuple[int, ...]:
    parts = [int(part) for part in version.split(".")]
    return tuple(parts + [0] * (4 - len(parts)))


def floors() -> dict[str, tuple[int, ...]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for name in extras for line in extras[name])]
    found = [match for line in wanted if (match := REQUIREMENT.match(line))]
    return {key(match[1]): number(match[2]) for match in found}


def pins(name: str) -> dict[str, tuple[int, ...]]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {key(line.split("==")[0]): number(line.split("==")[1]) for line in lines}


def test_the_oldest_versions_are_the_floors() -> None:
    wanted, oldest = floors(), pins("constraints-oldest.txt")
    not_at_run_time = {"mypy", "ruff", "pycocoevalcap"}  # the suite runs without them
    assert set(oldest) == set(wanted) - not_at_run_time
    assert {name: version for name, version in oldest.items() if version != wanted[name]} == {}


def test_the_usual_versions_are_no_older_and_no_file_names_an_index() -> None:
    wanted, usual = floors(), pins("constraints.txt")
    assert {name for name in wanted.keys() & usual.keys() if usual[name] < wanted[name]} == set()
    for name in ("constraints.txt", "constraints-oldest.txt"):
        assert not re.search(r"://|--", (ROOT / name).read_text())
