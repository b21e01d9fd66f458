"""docs/benchmarks.md: a section and a command that can work for every dataset."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tubelet.benchmarks.run_score import protocols_for
from tubelet.benchmarks.run_select import default_split
from tubelet.datasets import DATASETS, open_dataset
from tubelet.tube import TASKS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


def test_every_dataset_has_a_section_and_a_command_that_can_work() -> None:
    text = PAGE.read_text(encoding="utf-8")
    titles = {name for line in re.findall(r"^## (.+)$", text, re.MULTILINE) for name in line.split(", ")}
    assert set(DATASETS) <= titles
    commands = [shlex.split(line) for line in re.findall(r"^    tubelet eval ([a-z].+)$", text, re.MULTILINE)]
    assert {command[0] for command in commands} == set(DATASETS)
    known = {name for task in TASKS for name in protocols_for(task)}
    for name, *rest in commands:
        assert len(rest) % 2 == 0 and rest[-2] == "--out"
        options = dict(zip(rest[::2], rest[1::2], strict=True))
        assert set(options) <= {"--model", "--data", "--split", "--out", "--protocol", "--limit", "--task"}
        assert options.get("--split", "") in ("", *open_dataset(name).SPLITS), name
        assert options.get("--protocol", "tubelet") in known, name
        if "--split" not in options:
            assert default_split(name) in open_dataset(name).SPLITS
    for name in re.findall(r"`--protocol (\w+)`", text):
        assert name in known, name


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([\w./#-]+)\)", PAGE.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        page = PAGE.parent / file
        assert page.is_file(), target
        heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        names = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
        assert not anchor or anchor in names, target
