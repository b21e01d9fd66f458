"""Event localisation and captioning (ST-Align ELC) as a run: what is handed over, what is scored, what is said
where captions cannot be scored."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_models import FPS, FRAMES, HEIGHT, WIDTH, Fake, make_video

from tubelet.benchmarks import run_part
from tubelet.benchmarks.run import render_scores, run_benchmark
from tubelet.benchmarks.run_score import rescore
from tubelet.tube import Prediction, Span, Tube

CAPTIONS = ("the man in red opens the door", "a dog runs to the left of the girl", "the child rides a horse")
FIRST, LAST = 2, FRAMES - 1  # the segment, both included
BEGIN, END = 5, 12  # the event, <e> is its last frame


def make_elc(folder: Path) -> Path:
    rows = [
        {
            "video_path": f"v{k}.mp4",
            "meta": {
                "width": WIDTH,
                "height": HEIGHT,
                "split": [FIRST, LAST],
                "time_token": {"<s>": BEGIN, "<e>": END},
                "spatial_token": {
                    "<bboxes>": {str(f): [6, 4, 12, 8] for f in range(BEGIN, END + 1)},
                    "<bbox>": [6, 4, 12, 8],
                },
            },
            "conversations": [
                {"from": "human", "value": "<video>\nWhat happens to <bbox> after <s>?"},
                {"from": "gpt", "value": f"Ends in <e>, {caption} Object bounding box: <bboxes>"},
            ],
        }
        for k, caption in enumerate(CAPTIONS)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(len(CAPTIONS)):
        make_video(folder / f"v{k}.mp4")
    (folder / "elc.json").write_text(json.dumps(rows))
    return folder


class Teller(Fake):
    """Knows the end of every event and says the captions; answers in the label of the tube, as a LLaVA-ST does."""

    tasks = ("elc",)

    def __init__(
        self, captions: Sequence[str | None], end_s: float = (END + 1) / FPS, **options: Any
    ) -> None:
        super().__init__(**options)
        self.captions, self.end_s = captions, end_s
        self.given: list[tuple[Span, tuple[float, ...]]] = []

    def ground_many(  # type: ignore[override]
        self,
        state: str,
        queries: Sequence[str],
        task: str,
        span: Any = None,
        span_reader: str | None = None,
        box_xyxy: Any = None,
    ) -> list[Prediction]:
        assert task == "elc" and len(queries) == len(span) == len(box_xyxy) == 1
        self.given.append((span[0], box_xyxy[0]))
        caption = self.captions[int(state[1])]
        if caption is None:
            raise RuntimeError("out of memory")
        whole = Span(span[0].start_s, self.end_s)
        boxes = np.array([[6 / WIDTH, 4 / HEIGHT, 18 / WIDTH, 12 / HEIGHT]])
        tube = Tube(whole, np.array([whole.start_s]), boxes, label=caption)
        return [Prediction(state, queries[0], task, (tube,), text=f"Ends in 66, {caption} [..]")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_elc(tmp_path_factory.mktemp("elc"))


def mean(part: Any, name: str) -> float:
    value = part.metrics[name]
    return float(getattr(value, "mean", value))


def pretend_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """pycocoevalcap is there, as far as importing goes."""
    for path, name in (
        ("bleu.bleu", "Bleu"),
        ("cider.cider", "Cider"),
        ("meteor.meteor", "Meteor"),
        ("rouge.rouge", "Rouge"),
        ("tokenizer.ptbtokenizer", "PTBTokenizer"),
    ):
        parts = f"pycocoevalcap.{path}".split(".")
        for k in range(1, len(parts) + 1):
            module = types.ModuleType(".".join(parts[:k]))
            setattr(module, name, None)
            monkeypatch.setitem(sys.modules, module.__name__, module)


def test_start_and_box_are_handed_over_and_everything_is_scored(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[str], list[str]]] = []

    def judge(said: list[str], true: list[str]) -> dict[str, float]:
        asked.append((said, true))
        return {"METEOR": 0.25}

    monkeypatch.setattr(run_part, "score_captions", judge)
    model = Teller([CAPTIONS[0], None, "a horse"])
    scores = run_benchmark(model, "st-align", data, tmp_path, split="elc")  # type: ignore[arg-type]
    start, box = model.given[0]
    assert start.start_s == pytest.approx(BEGIN / FPS) and start.duration_s < 0.01  # never the end
    assert box == pytest.approx((6 / WIDTH, 4 / HEIGHT, 18 / WIDTH, 12 / HEIGHT))
    part = scores.parts["elc"]
    assert (part.n, part.n_failed, list(part.failures.values())) == (3, 1, ["out of memory"])
    # the caption is the label, not the raw answer; a failure says nothing and counts
    assert asked == [([CAPTIONS[0], "", "a horse"], list(CAPTIONS))]
    assert mean(part, "METEOR") == 0.25
    assert mean(part, "mIoU") == pytest.approx(2 / 3) and mean(part, "R1@0.7") == pytest.approx(2 / 3)
    assert mean(part, "m_sIoU") == pytest.approx(2 / 3) and mean(part, "sIoU@0.5") == pytest.approx(2 / 3)
    assert "boxes (sIoU, vIoU) are scored under protocol llavast" in part.notes
    assert "METEOR" in render_scores(scores)


def test_a_wrong_end_costs_time_not_place(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_part, "score_captions", lambda *_: {})
    model = Teller(CAPTIONS, end_s=(BEGIN + 4) / FPS)  # half of the eight frames
    part = run_benchmark(model, "st-align", data, tmp_path, split="elc").parts["elc"]  # type: ignore[arg-type]
    assert mean(part, "mIoU") == pytest.approx(0.5)
    assert mean(part, "m_sIoU") == pytest.approx(1.0)  # over frames where both have a box
    assert 0.3 < mean(part, "m_vIoU") < 0.7


def test_without_java_there_are_spans_boxes_and_a_sentence(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_package(monkeypatch)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    model = Teller(CAPTIONS)
    part = run_benchmark(model, "st-align", data, tmp_path, split="elc").parts["elc"]  # type: ignore[arg-type]
    (note,) = [note for note in part.notes if "captions are not scored" in note]
    assert "METEOR with Java" in note and "install a Java runtime" in note
    assert not {"METEOR", "CIDEr", "Bleu_4", "ROUGE_L"} & set(part.metrics)
    assert mean(part, "mIoU") == pytest.approx(1.0)
    assert note in (tmp_path / "metrics.json").read_text()


def test_without_the_package_there_is_its_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)  # importing it raises ImportError
    for name in [name for name in sys.modules if name.startswith("pycocoevalcap.")]:
        monkeypatch.delitem(sys.modules, name)
    model = Teller(CAPTIONS)
    part = run_benchmark(model, "st-align", data, tmp_path, split="elc").parts["elc"]  # type: ignore[arg-type]
    assert any("pip install 'tubelet[captions]'" in note for note in part.notes)
    assert "METEOR" not in part.metrics


@pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None,
    reason="captions need pycocoevalcap and Java",
)
def test_captions_are_scored_with_the_real_package(data: Path, tmp_path: Path) -> None:
    right = run_benchmark(Teller(CAPTIONS), "st-align", data, tmp_path / "a", split="elc")  # type: ignore[arg-type]
    half = Teller(["the man opens a window", None, CAPTIONS[2]])
    worse = run_benchmark(half, "st-align", data, tmp_path / "b", split="elc")  # type: ignore[arg-type]
    assert mean(right.parts["elc"], "Bleu_4") == pytest.approx(1.0, abs=1e-3)
    assert mean(right.parts["elc"], "METEOR") == pytest.approx(1.0, abs=1e-3)
    assert 0.2 < mean(worse.parts["elc"], "METEOR") < mean(right.parts["elc"], "METEOR")
    again = rescore(tmp_path / "b")  # from the files alone
    assert mean(again.parts["elc"], "CIDEr") == mean(worse.parts["elc"], "CIDEr")


def test_a_model_that_takes_no_box_fails_with_a_sentence(data: Path, tmp_path: Path) -> None:
    part = run_benchmark(Fake(), "st-align", data, tmp_path, split="elc").parts["elc"]  # type: ignore[arg-type]
    assert part.n_failed == 3
    assert set(part.failures.values()) == {
        "fake does not take task elc, which hands over a box: a LLaVA-ST does"
    }
    assert mean(part, "mIoU") == 0.0
