"""QVHighlights as a run: windows by moment_detr's rules, and highlights where a model scores the clips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_models import Fake, make_video

from tubelet.benchmarks.run import run_benchmark
from tubelet.benchmarks.run_score import rescore
from tubelet.errors import DataError
from tubelet.metrics.moments import score_moments
from tubelet.tube import Prediction, Span, Tube

QUERIES = ("she talks", "he waves")
# clip 1 is liked by two annotators, clip 2 is fair to all three
CLIPS: dict[str, Any] = {"relevant_clip_ids": [1, 2], "saliency_scores": [[4, 3, 0], [2, 2, 2]]}


class Judge(Fake):
    """Finds the true window, and says these scores of clips (by query)."""

    name = "judge"

    def __init__(self, saliency: dict[str, Any]) -> None:
        super().__init__()
        self.saliency = saliency

    def ground_many(
        self, state: str, queries: Sequence[str], task: str, span: Any = None, span_reader: str | None = None
    ) -> list[Prediction]:
        found = [Prediction(state, q, task, (Tube(Span(2, 6), score=0.5),)) for q in queries]
        return [
            replace(p, provenance={"saliency_scores": self.saliency[p.query]})
            if p.query in self.saliency
            else p
            for p in found
        ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qvh")
    rows = [
        {"qid": k, "query": q, "duration": 10, "vid": "v", "relevant_windows": [[2, 6]], **CLIPS}
        for k, q in enumerate(QUERIES)
    ]
    (folder / "highlight_val_release.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make_video(folder / "videos" / "v.mp4", frames=20, fps=2)
    return folder


def scored(model: Fake, data: Path, out: Path) -> Any:
    return run_benchmark(model, "qvhighlights", data, out, split="val", protocol="moment_detr").parts["tvg"]  # type: ignore[arg-type]


def test_clips_are_scored_by_hand(data: Path, tmp_path: Path) -> None:
    part = scored(Judge({QUERIES[0]: [0.0, 9.0, 1.0, 0.0, 0.0]}), data, tmp_path)
    assert part.metrics["MR-full-mAP"] == 1.0 and part.metrics["MR-short-R1@0.5"] == 1.0
    # per annotator: fair 1, 1, 1/2 (clip 2 comes second); good 1, 1, 0 (nothing to find); very good 1, 0, 0
    for name, ap in (("Fair", 5 / 6), ("Good", 2 / 3), ("VeryGood", 1 / 3)):
        assert part.metrics[f"HL-min-{name}-mAP"] == pytest.approx(ap / 2)  # the other query says nothing: 0
        assert part.metrics[f"HL-min-{name}-Hit1"] == 0.5
    assert "highlights: 1 of 2 answers have saliency scores, the rest is 0" in part.notes
    again = rescore(tmp_path, "moment_detr").parts["tvg"]  # from the files alone
    assert again.metrics == part.metrics


def test_a_model_that_only_finds_windows_is_told_what_is_missing(data: Path, tmp_path: Path) -> None:
    part = scored(Judge({}), data, tmp_path)
    assert not [name for name in part.metrics if name.startswith("HL")]
    assert any("highlights (HL-*) need saliency scores" in note for note in part.notes)


@pytest.mark.parametrize("said", ["loud", [1.0, float("inf")], [[1, 2]], [], [None, "x"], {"a": 1}])
def test_scores_that_are_no_numbers_count_as_none(data: Path, tmp_path: Path, said: Any) -> None:
    part = scored(Judge({QUERIES[0]: said, QUERIES[1]: [0, 1, 0, 0, 0]}), data, tmp_path)
    assert part.metrics["HL-min-Fair-Hit1"] == 0.5
    assert "highlights: 1 of 2 answers have saliency scores, the rest is 0" in part.notes


def test_bad_highlights_are_said_by_query() -> None:
    true = {"qid": 7, "relevant_windows": [[2, 6]], "duration": 10, **CLIPS}
    given = {"qid": 7, "pred_relevant_windows": [[2, 6, 1]], "pred_saliency_scores": [0, 1, 0, 0, 0]}
    assert score_moments([given], [true]).metrics["HL-min-VeryGood-Hit1"] == 1.0
    # a listed clip after the end of a short video has no row, as in the reader
    late = {**true, "relevant_clip_ids": [1, 7]}
    assert score_moments([given], [late]).metrics["HL-min-Fair-Hit1"] == 1.0
    for bad, says in (
        (
            {**given, "pred_saliency_scores": [0, float("nan")]},
            "query 7: saliency scores are one finite number",
        ),
        ({**given, "pred_saliency_scores": "abc"}, "query 7: saliency scores are one number per 2 s clip"),
    ):
        with pytest.raises(DataError, match=says):
            score_moments([bad], [true])
    with pytest.raises(DataError, match="the truth has none"):
        score_moments([given], [{k: v for k, v in true.items() if k != "saliency_scores"}])
    with pytest.raises(DataError, match="three numbers for each of relevant_clip_ids"):
        score_moments([given], [{**true, "saliency_scores": [[1, 2, 3]]}])
