"""Models that learnt from different labels, on the same queries: metrics of each, and paired differences.

    compare("runs/unistg-training", {"exact": "runs/unistg-pico-exact/model", "built": "runs/unistg-pico/model"})

The queries are those of `training_proof.prepare`: sentences as the captions have them, one per unseen video, with exact
truth. Spans are read from activity (no text is generated). Metrics are those of `metrics.grounding`: tIoU, vIoU, and
sIoU with the true span given; all frames' boxes come from the question that was learnt ("find ..."), because rows in
files teach no task svg. A query that fails counts as 0.

The first model is the reference: differences are other minus first over the same queries, redrawn together (percentile
bootstrap, 95 %). The intervals say how far the queries decide, not what another training seed would give.

FOLDER/compare.json          the tables, with the revision of each model
FOLDER/answers-NAME.jsonl    span, boxes and scores of every query
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tubelet import __version__
from tubelet.benchmarks.run_folder import write_whole
from tubelet.benchmarks.world import truth_of
from tubelet.datasets.reading import stream_jsonl
from tubelet.errors import DataError, TubeletError
from tubelet.metrics.bootstrap import Interval, bootstrap_table
from tubelet.metrics.grounding import score_tube, siou
from tubelet.tube import Prediction, Span, Tube
from tubelet.unistg.rows import write_lines
from tubelet.unistg.training_proof import QUERIES
from tubelet.unistg.training_world import KINDS

if TYPE_CHECKING:
    from tubelet.spacevllm.grounder import SpaceVLLMGrounder

METRICS = ("m_tIoU", "m_vIoU", "sIoU")
Table = dict[str, dict[str, Interval]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """models: name -> kind ("all", "presence", "event") -> metric. differences: "name - first" -> the same.

    n_failed: queries of each model that had no answer.
    """

    models: Mapping[str, Table]
    differences: Mapping[str, Table]
    n_failed: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        def plain(tables: Mapping[str, Table]) -> dict[str, Any]:
            return {
                name: {kind: {m: i.to_dict() for m, i in row.items()} for kind, row in table.items()}
                for name, table in tables.items()
            }

        return {
            "models": plain(self.models),
            "differences": plain(self.differences),
            "n_failed": dict(self.n_failed),
        }


def compare(
    folder: Path | str,
    models: Mapping[str, Path | str],
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Ask all models all queries (the first `limit`) and compare them with the first one.

    models: name -> folder of a SpaceVLLM. Raises ModelError for one that cannot be loaded, DataError where the folder
    holds no queries or a model is no SpaceVLLM.
    """
    folder = Path(folder)
    if not models:
        raise DataError("give at least one model: name=folder")
    grounders = {name: _load(path) for name, path in models.items()}
    if not (folder / QUERIES).is_file():
        raise DataError(f"{folder} has no {QUERIES}: make it with 'tubelet unistg prove-training prepare'")
    queries = [item.data for item in stream_jsonl(folder / QUERIES, "raise")][:limit]
    kinds = [str(query["kind"]) for query in queries]
    scores: dict[str, npt.NDArray[np.float64]] = {}
    failed: dict[str, int] = {}
    for number, (name, grounder) in enumerate(grounders.items()):
        lines = []
        for k, query in enumerate(queries):
            lines.append(answer(grounder, folder, query))
            if progress is not None:
                progress(number * len(queries) + k + 1, len(grounders) * len(queries))
        write_lines(lines, folder / f"answers-{name}.jsonl")
        scores[name] = np.array([[line["scores"][m] for m in METRICS] for line in lines])
        failed[name] = sum(line["failure"] is not None for line in lines)
    found = tables(scores, kinds, failed)
    card = {
        "tubelet": __version__,
        "models": {
            name: {"folder": str(models[name]), "revision": g.revision} for name, g in grounders.items()
        },
        "n": len(queries),
        "span_reader": "activity",
    }
    write_whole(folder / "compare.json", json.dumps({"run": card, **found.to_dict()}, indent=1) + "\n")
    return found


def tables(
    scores: Mapping[str, npt.NDArray[np.float64]], kinds: Sequence[str], n_failed: Mapping[str, int]
) -> Comparison:
    """scores: name -> (Q, 3), columns as METRICS, one row per query in the same order for all; kinds: (Q,)."""
    shapes = {name: table.shape for name, table in scores.items()}
    if set(shapes.values()) != {(len(kinds), len(METRICS))}:
        raise DataError(f"all models are scored on the same {len(kinds)} queries, got {shapes}")
    first, *others = scores
    return Comparison(
        {name: _by_kind(table, kinds) for name, table in scores.items()},
        {f"{name} - {first}": _by_kind(scores[name] - scores[first], kinds) for name in others},
        n_failed,
    )


def _by_kind(table: npt.NDArray[np.float64], kinds: Sequence[str]) -> Table:
    out: Table = {}
    for kind in ("all", *KINDS):
        rows = np.array([kind in ("all", k) for k in kinds], dtype=bool)
        if rows.any():
            out[kind] = bootstrap_table({m: table[rows, c] for c, m in enumerate(METRICS)})
    return out


def answer(grounder: SpaceVLLMGrounder, folder: Path, query: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a line of queries.jsonl, with its scores."""
    truth = truth_of(dict(query))
    given = Span.from_dict(query["span"])
    prediction, where = None, None
    try:
        state = grounder.encode(folder / str(query["video"]))
        text = str(query["query"])
        prediction = grounder.ground_many(state, [text], "stvg", span_reader="activity")[0]
        where = boxes_in(grounder, state, text, given)
    except TubeletError as error:
        prediction = Prediction(str(query["video"]), str(query["query"]), "stvg", failure=str(error))
    scored = score_tube(prediction.tube, truth)
    return {
        "id": query["id"],
        "kind": query["kind"],
        "query": query["query"],
        "scores": {"m_tIoU": scored.tiou, "m_vIoU": scored.viou, "sIoU": siou(where, truth)},
        "tube": None if prediction.tube is None else prediction.tube.to_dict(),
        "failure": prediction.failure,
    }


def boxes_in(grounder: SpaceVLLMGrounder, state: Any, text: str, span: Span) -> Tube:
    """Where the sentence's subject is in a given span, read from the stvg question."""
    from tubelet.spacevllm.prompts import encode_query, question_text
    from tubelet.spacevllm.readout import FrameReading, make_tube

    words = question_text(grounder.config, "stvg", text)
    ids = encode_query(grounder.bundle.tokenizer, words)
    layout = grounder.bundle.layout
    asked = grounder.model.ask(state.prefix, [[*ids, *layout.tail]], [len(ids)], 0, layout.end[0])
    decoder = asked.decoder
    boxes = decoder.boxes_xyxy[0].double().cpu().numpy()
    quality = decoder.quality_logits[0].sigmoid().double().cpu().numpy()
    reading = FrameReading(boxes, np.ones(len(boxes)), quality, 1.0)
    return make_tube(span, reading, state.grid, 1.0, text)


def _load(model: Path | str) -> SpaceVLLMGrounder:
    from tubelet.grounder import load
    from tubelet.spacevllm.grounder import SpaceVLLMGrounder

    grounder = load(model)
    if not isinstance(grounder, SpaceVLLMGrounder):
        raise DataError(f"{model} is no SpaceVLLM: the arms are models of recipes/unistg-pico.yaml")
    return grounder
