"""What the moment-retrieval, referring and question-answering datasets share: names, options with letters, speed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from annotation_help import write_lines

from tubelet.datasets import DATASETS, open_dataset, read, refcoco
from tubelet.datasets.check import data_check
from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.layout import FileSpec
from tubelet.datasets.lettered import letter_index, unlettered
from tubelet.datasets.moments import window
from tubelet.datasets.optional import optional_file
from tubelet.errors import DataError
from tubelet.tube import Span

NAMES = (
    "charades-sta",
    "didemo",
    "tacos",
    "activitynet",
    "qvhighlights",
    "tvgbench",
    "refcoco",
    "mvbench",
    "video-mme",
    "egoschema",
    "tempcompass",
    "vtimellm",
    "moment-10m",
    "anet-rtl",
    "grounded-videollm",
    "vtg-it",
    "internvid-g",
    "hirest",
    "coin",
    "youcook2",
    "flickr30k-entities",
    "grand",
)
ITEM = Item({}, "f.json", "record 0")


@pytest.mark.parametrize("name", NAMES)
def test_shape_of_a_module(name: str, tmp_path: Path) -> None:
    module = open_dataset(name)
    assert (module.NAME, DATASETS[name]) == (name, module.__name__)
    with pytest.raises(DataError, match="splits are"):
        module.read(tmp_path, "nope")
    assert {spec.kind for spec in module.FILES} == {"annotation", "media"}
    assert all(spec.source and spec.what and spec.patterns for spec in module.FILES)
    assert {split for spec in module.FILES for split in spec.splits} <= set(module.SPLITS)
    for split in module.SPLITS:
        with pytest.raises(DataError, match=r"from \S"):  # says where the files are to be had
            module.read(tmp_path, split)
    report = data_check(name, tmp_path)
    assert not report.ok
    assert "no record read" in report.render()


def test_every_dataset_has_its_page() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert text.count(f"\n## {name}\n") == 1
        assert f"    tubelet data check {name} DIR\n" in text
    assert f"    {refcoco.CONVERT}\n" in text


def test_reading_imports_neither_torch_nor_pyarrow(tmp_path: Path) -> None:
    (tmp_path / "charades_sta_test.txt").write_text("AAAAA 1 2##x\n")
    code = (
        "import sys; from tubelet.datasets import open_dataset, read\n"
        f"for name in {NAMES!r}: open_dataset(name)\n"
        f"n = len(list(read('charades_sta', {str(tmp_path)!r}, 'test')))\n"
        "print(n, [name for name in ('torch', 'transformers', 'pyarrow', 'av') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 []"


def test_reading_is_lazy(tmp_path: Path) -> None:
    line = {"qid": 1, "query": "x", "duration": 20, "vid": "a", "relevant_windows": [[1, 2]]}
    records = read("tacos", write_lines(tmp_path / "a.jsonl", [line, 3]), "test")
    assert next(records).id == "a_0"
    with pytest.raises(RecordError, match="line 2: expected a JSON object"):
        next(records)


def test_windows() -> None:
    assert window(ITEM, "t", 1, 2, 2) == (Span(1, 2), [])
    assert window(ITEM, "t", 1, 2.009, 2)[1] == []  # durations are written with two decimals
    assert window(ITEM, "t", 1, 2.02, 2)[1] == ["span-past-end: the span ends at 2.02 s of 2 s"]
    assert window(ITEM, "t", 1, 99)[1] == []  # no duration, no verdict
    span, notes = window(ITEM, "t", 3, 3, 10)
    assert (span, len(notes)) == (Span(3, 3.001), 1)
    with pytest.raises(
        RecordError, match=r"f.json, record 0: field t: expected 0 <= start <= end, got 3 to 2 s"
    ):
        window(ITEM, "t", 3, 2)
    with pytest.raises(RecordError, match="field t"):
        window(ITEM, "t", 2.0**53, 2.0**53)  # too large to add a millisecond


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["A. cat", "B. dog"], ("cat", "dog")),
        (["(A) cat", "(B) dog"], ("cat", "dog")),
        (["A: cat", " B) dog "], ("cat", "dog")),
        (["A.cat", "B.dog"], ("cat", "dog")),
        (["A. B. King", "B. A. Queen"], ("B. King", "A. Queen")),
        (["cat", "B. dog"], ("cat", "B. dog")),
        (["Apple", "Bear"], ("Apple", "Bear")),
    ],
)
def test_letters_before_options(options: list[str], texts: tuple[str, ...]) -> None:
    assert unlettered(ITEM, "options", options) == texts


@pytest.mark.parametrize(
    "options", [["A. cat", "dog"], ["A. cat", "C. dog"], ["A. ", "B. x"], ["A. x"], ["x"] * 27]
)
def test_letters_that_make_no_sense(options: list[str]) -> None:
    with pytest.raises(RecordError, match="field options"):
        unlettered(ITEM, "options", options)


def test_letters_of_answers() -> None:
    assert [letter_index(ITEM, "answer", letter, 3) for letter in ("A", " B ", "C")] == [0, 1, 2]
    for letter in ("D", "a", "", "AB", "1", "\u0391"):
        with pytest.raises(RecordError, match="field answer: expected a letter from A to C"):
            letter_index(ITEM, "answer", letter, 3)


def test_a_long_option_takes_no_longer_than_it_should() -> None:
    long = "A. x" + " " * 200_000 + "y"
    assert len(unlettered(ITEM, "options", [long, "B. z"])[0]) == 200_002


def test_optional_files(tmp_path: Path) -> None:
    files = (
        FileSpec("extra", ("a*.json",), "w", "s", ("val",)),
        FileSpec("extra", ("b.json",), "w", "s", ("test",)),
        FileSpec("other", ("c.json",), "w", "s"),
    )
    for name in ("a1.json", "b.json"):
        (tmp_path / name).touch()
    assert optional_file(tmp_path, files, "extra", "val") == tmp_path / "a1.json"
    assert optional_file(tmp_path, files, "extra", "test") == tmp_path / "b.json"
    assert optional_file(tmp_path, files, "other") is None
    (tmp_path / "a2.json").touch()
    with pytest.raises(DataError, match=r"several files for extra: a1\.json, a2\.json; keep one"):
        optional_file(tmp_path, files, "extra", "val")


def test_the_check_counts_notes_and_problems(tmp_path: Path) -> None:
    lines = ["AAAAA 1 2##a", "AAAAA 3 99##b", "AAAAA 5 4##c"]
    (tmp_path / "charades_sta_test.txt").write_text("\n".join(lines))
    (tmp_path / "Charades_v1_test.csv").write_text("id,length\nAAAAA,30\n")
    (split,) = data_check("charades-sta", tmp_path).splits
    assert (split.records, split.problems, split.tasks) == (2, 1, {"tvg": 2})
    assert {code: tally.count for code, tally in split.notes.items()} == {"span-past-end": 1}
    assert list(split.problem_kinds) == ["charades_sta_test.txt: end"]
