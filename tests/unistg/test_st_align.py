"""ST-Align's mixture from readers: items in the official format, lists in the paper's proportions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tubelet.cli import main
from tubelet.errors import RecipeError
from tubelet.llava_st.assemble import PAPER, AlignSource, Assembly, assemble, shares
from tubelet.llava_st.item_files import read_items
from tubelet.llava_st.mixture import open_mixture
from tubelet.world.files import make_world


def sources(*rows: tuple[str, str, Path]) -> tuple[AlignSource, ...]:
    return tuple(AlignSource(3, kind, name, str(path), "test") for kind, name, path in rows)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("worlds")
    for task, n in (("stvg", 5), ("rec", 6)):
        make_world(folder / task, n=n, seed=3, tasks=(task,), height=48)
    return {task: folder / task for task in ("stvg", "rec")}


def test_one_tube_makes_three_tasks_and_one_box_two(worlds: dict[str, Path], tmp_path: Path) -> None:
    kinds = {"stvg": "stvg", "svg": "stvg", "elc": "stvg", "tvg": "stvg", "dvc": "stvg"}
    kinds |= {"temporal_referring": "stvg", "rec": "rec", "region_caption": "rec"}
    given = sources(*((kind, "world", worlds[task]) for kind, task in kinds.items()))
    report = assemble(Assembly(given, proportions=False), tmp_path)
    made = {kind: list(read_items(tmp_path / "stage3" / f"{kind}-world-test.jsonl")) for kind in kinds}
    for kind, items in made.items():
        assert len(items) >= 3 and {item.kind for item in items} == {kind}
        assert len({item.id for item in items}) == len(items)
    for tube, given_span, located in zip(made["stvg"], made["svg"], made["elc"], strict=True):
        ((start, end),) = tube.parts()[1].spans[:1]
        assert given_span.parts()[0].spans == ((start, end),)
        assert given_span.parts()[1].timed_boxes == tube.parts()[1].timed_boxes
        assert located.parts()[0].times[0] == start and located.parts()[0].boxes
        assert located.parts()[1].times[0] == end
    for box, region in zip(made["rec"], made["region_caption"], strict=True):
        assert region.parts()[0].boxes == box.parts()[1].boxes
        assert region.conversations[1].text in box.conversations[0].text
    assert report["stages"]["3"]["stvg"] == {"paper": 81_000, "items": 5, "drawn": 5}
    mixed = open_mixture(tmp_path / "stage3.yaml")
    assert len(mixed) == sum(map(len, made.values()))
    drawn = mixed[0]
    assert (drawn.folder / drawn.item.path).is_file()


def test_lists_draw_the_papers_proportions() -> None:
    counts = {
        AlignSource(3, "rec", "refcoco", "a"): 30_000,
        AlignSource(3, "rec", "world", "b"): 10_000,
        AlignSource(3, "stvg", "vidstg", "c"): 8_100,
        AlignSource(3, "elc", "vidstg", "c"): 8_100,
    }
    drawn = shares(counts, 3)
    assert list(drawn.values()) == [21_600, 7_200, 8_100, 3_600]  # a tenth of 288,000, 81,000 and 36,000
    assert all(drawn[source] <= count for source, count in counts.items())
    assert sum(PAPER[2].values()) == 687_000 and PAPER[1] == {"video_captioning": 1_280_000}


def test_the_command_says_what_there_is_and_what_was_dropped(
    worlds: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"from": "human", "value": "<video>\nWho is it?"}, {"from": "gpt", "value": "A dog."}]
    rows: list[dict[str, Any]] = [{"id": k, "video": f"{k}.mp4", "conversations": turns} for k in range(3)]
    rows.append({"id": 9, "conversations": turns})  # text only
    (tmp_path / "talk.json").write_text(json.dumps(rows))
    listed = [
        {"stage": 3, "kind": "conversation", "source": "conversations", "path": str(tmp_path / "talk.json")},
        {"stage": 3, "kind": "stvg", "source": "world", "path": str(worlds["stvg"]), "split": "test"},
        {"stage": 2, "kind": "tvg", "source": "world", "path": str(worlds["rec"]), "split": "test"},
    ]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"sources": listed}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["tubelet", "unistg", "st-align", str(tmp_path / "recipe.yaml"), str(tmp_path / "o")]
        )
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code in (0, None)
    told = capsys.readouterr()
    assert "conversation" in told.out and "not-this-kind" in told.err
    drops = [json.loads(line) for line in (tmp_path / "o" / "drops.jsonl").read_text().splitlines()]
    assert len(drops) == 7  # the text, and six images that have no times
    talk = list(read_items(tmp_path / "o" / "stage3" / "conversation-conversations.jsonl"))
    assert [item.kind for item in talk] == ["conversation"] * 3
    assert not (tmp_path / "o" / "stage2.yaml").exists()
    assert len(open_mixture(tmp_path / "o" / "stage3.yaml")) == 3 + 1  # 222 : 81 of three and five


def test_recipes_that_make_no_sense() -> None:
    with pytest.raises(RecipeError, match="a stage"):
        AlignSource(4, "stvg", "vidstg", "x")
    with pytest.raises(RecipeError, match="one of"):
        AlignSource(3, "stvg", "kinetics", "x")
    with pytest.raises(RecipeError, match="twice"):
        Assembly((AlignSource(3, "stvg", "vidstg", "x"),) * 2)
