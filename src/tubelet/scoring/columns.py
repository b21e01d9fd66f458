"""One protocol over batches of cases: values per query, joined into one column of the table.

Where the format is the protocol's own (VUE-STG rows under vue_stg, LLaVA-ST records under llavast, ...), the records
are scored as that project's evaluator scores them; everywhere else as what `checks` made of them, by
`tubelet.metrics`. Only one number per query and metric is kept, so memory does not grow with what a file holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tubelet.errors import DataError, ModelError
from tubelet.metrics.bootstrap import Interval, bootstrap_table
from tubelet.metrics.captions import score_captions
from tubelet.metrics.evaluate import Report, Targets, by_group, evaluate
from tubelet.metrics.grounding import balanced_accuracy
from tubelet.metrics.llavast import score_llavast
from tubelet.metrics.moments import SPAN_PROTOCOLS, average_precision, hits, recall_ious, score_moments
from tubelet.metrics.protocols import PROTOCOLS
from tubelet.metrics.ragged import FloatArray, Tubes
from tubelet.metrics.referring import BOX_PROTOCOLS, score_boxes
from tubelet.metrics.seconds import score_vue, vue_slices
from tubelet.metrics.stvg_r1 import score_stvg_r1
from tubelet.metrics.tubes import score_tubes
from tubelet.scoring.text import read_text
from tubelet.scoring.truths import Case

Values = dict[str, FloatArray]
Failures = dict[int, str]
Scorer = Callable[[Sequence[Case], str], tuple[Values, Failures]]

_VUE = {
    "tIoU": "t_iou",
    "tRecall": "t_recall",
    "tPrecision": "t_precision",
    "vIoU": "v_iou",
    "vRecall": "v_recall",
    "vPrecision": "v_precision",
    "vIoU_Int": "v_iou_intersection",
    "volume_IoU": "3d_iou",
    "volume_Recall": "3d_recall",
    "volume_Precision": "3d_precision",
}
_HIGHLIGHTS = tuple(
    f"HL-min-{level}-{what}" for level in ("Fair", "Good", "VeryGood") for what in ("mAP", "Hit1")
)
_READ = ("no prediction", "no-answer", "unread")


def protocols_for(task: str) -> tuple[str, ...]:
    """The names that score a task; tvg: all but didemo, which needs ranked segments."""
    if task in ("stvg", "svg", "elc"):
        return tuple(PROTOCOLS)
    if task == "tvg":
        return tuple(SPAN_PROTOCOLS)
    return tuple(BOX_PROTOCOLS) if task == "rec" else ()


@dataclass(slots=True, eq=False)
class Column:
    """A growing column. found, present: of every query; captions: said and true, for task elc."""

    protocol: str
    task: str
    score: Scorer
    own: bool = False
    ids: list[str] = field(default_factory=list)
    parts: dict[str, list[FloatArray]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    found: list[bool] = field(default_factory=list)
    present: list[bool] = field(default_factory=list)
    captions: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    saliency: bool = False

    def add(self, cases: Sequence[Case]) -> None:
        for case in cases:
            self.present.append(not case.truths or case.truths[0].span is not None)
            self.found.append(case.failure is None and (case.prediction is None or case.prediction.found))
            reason = case.failure
            if reason is not None and (not self.own or reason.startswith(_READ)):
                self.failures[case.id] = reason
            self.saliency |= "pred_saliency_scores" in (case.native or {})
            if self.task == "elc" and self.own:
                self.captions[1].append(str(case.extra.get("caption", "")))
        true = [c for c in cases if not c.truths or c.truths[0].span is not None]
        if not true:
            return
        with np.errstate(
            invalid="ignore", over="ignore"
        ):  # an own evaluator meets NaN and infinity as they are
            values, failed = self.score(true, self.protocol)
        self.ids += [case.id for case in true]
        for name, column in values.items():
            self.parts.setdefault(name, []).append(column)
        for row, reason in failed.items():
            self.failures.setdefault(true[row].id, reason)
        if self.task == "elc" and self.own:
            self.captions[0].extend(score_llavast([_native(c) for c in true], "elc").captions)

    @property
    def n(self) -> int:
        return len(self.present)

    def metrics(self) -> tuple[dict[str, Interval], list[str]]:
        """Means with 95 % intervals, and notes on what they leave out."""
        values = {name: np.concatenate(columns) for name, columns in self.parts.items()}
        if not self.saliency:  # nobody answered that question
            values = {name: v for name, v in values.items() if name not in _HIGHLIGHTS}
        out: dict[str, Interval] = {}
        if values and self.task in ("stvg", "svg", "elc"):
            report = Report(self.protocol, len(self.ids), tuple(self.ids), values, {}, {})
            out = dict(by_group(report, {}).get("other", {}))
        elif values:
            out = bootstrap_table(values)
        undefined: dict[int, list[str]] = {}
        for name, interval in out.items():
            if interval.n < len(self.ids):
                undefined.setdefault(len(self.ids) - interval.n, []).append(name)
        notes = [
            f"{_some(names)}: undefined for {k} of {len(self.ids)} queries, which are not in the mean"
            for k, names in undefined.items()
        ]
        out |= self._answered(values, out)
        rejection = balanced_accuracy(self.found, self.present)
        if rejection is not None:
            out["rejection_balanced_accuracy"] = rejection
        if self.captions[0]:
            try:
                told = score_captions([c or " " for c in self.captions[0]], self.captions[1])
                nan = float("nan")
                out |= {name: Interval(v, nan, nan, len(self.ids)) for name, v in told.items()}
            except ModelError as error:
                notes.append(f"captions are not scored: {error}")
        return out, notes

    def _answered(self, values: Values, means: Mapping[str, Interval]) -> dict[str, Interval]:
        """Means over the queries that did not fail, as evaluators report that drop the others; none if none failed."""
        kept = np.array([key not in self.failures for key in self.ids], dtype=bool)
        if kept.all() or not kept.any():
            return {}
        names = {"tIoU": "m_tIoU", "vIoU": "m_vIoU", "mIoU": "mIoU"}
        return bootstrap_table(
            {
                f"{shown}_answered": values[name][kept]
                for name, shown in names.items()
                if name in values and shown in means
            }
        )


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def make_column(protocol: str, task: str, fmt: str) -> Column:
    """DataError when the protocol does not score the task."""
    offered = protocols_for(task)
    if protocol not in offered:
        raise DataError(f"protocol {protocol!r} does not score task {task}: there are {', '.join(offered)}")
    if (fmt, protocol) == ("llavast", "llavast"):
        return Column(protocol, task, _llavast_of(task), own=True)
    own = _OWN.get((fmt, protocol))
    if own is not None and task in own[0]:
        return Column(protocol, task, own[1], own=True)
    if task == "tvg":
        read_own = fmt == "qwen" and protocol == "charades"
        return Column(protocol, task, _charades_text if read_own else _spans)
    if task == "rec":
        return Column(protocol, task, _boxes)
    return Column(protocol, task, _tubes)


# --- what a batch scores ----------------------------------------------------------------------------


def _tubes(cases: Sequence[Case], protocol: str) -> tuple[Values, Failures]:
    truths: dict[str, Targets] = {c.id: c.truths[0] if len(c.truths) == 1 else c.truths for c in cases}
    predictions = {c.id: c.prediction for c in cases if c.prediction is not None}
    report = evaluate(predictions, truths, protocol)
    rows = {c.id: k for k, c in enumerate(cases)}
    return dict(report.values), {rows[key]: reason for key, reason in report.failures.items()}


def _spans(cases: Sequence[Case], protocol: str) -> tuple[Values, Failures]:
    rules = SPAN_PROTOCOLS[protocol]
    # a window of a text answer that says [0, 0] is none for LLaVA-ST; its IoU is 0 either way
    predicted = [c.windows for c in cases]
    true = [c.true_windows for c in cases]
    iou = recall_ious(predicted, true, 1, rules)
    if not rules.length_ranges:
        return {"mIoU": iou} | {
            f"R1@{t:g}": hits(iou, t, rules.strict).astype(np.float64) for t in rules.thresholds
        }, {}
    out: Values = {}
    for name, low, high in rules.length_ranges:
        kept = [[w for w in windows if low < w[1] - w[0] <= high] for windows in true]
        empty = np.array([not k for k in kept])
        limits = rules.thresholds
        ap = average_precision(predicted, kept, limits, rules.most_windows, rules.undefined_hits)
        top = recall_ious(predicted, kept, 1, rules)
        columns = {"mAP": ap.mean(axis=1), "mIoU": top}
        for k, t in enumerate(limits):
            columns[f"mAP@{t:g}"] = ap[:, k]
            columns[f"R1@{t:g}"] = hits(top, t, rules.strict).astype(np.float64)
        out |= {f"MR-{name}-{key}": np.where(empty, np.nan, v) for key, v in columns.items()}
    return out | _highlights(cases, protocol), {}


def _highlights(cases: Sequence[Case], protocol: str) -> Values:
    """HL-* per query where the truth has saliency scores; a query whose answer has none scores 0."""
    out = {name: np.zeros(len(cases)) for name in _HIGHLIGHTS}
    for k, case in enumerate(cases):
        if not case.extra.get("saliency_scores") or not case.extra.get("duration"):
            return {}
        scores = (case.native or {}).get("pred_saliency_scores", [])
        if len(scores):
            record = {"qid": case.id, "relevant_windows": case.true_windows, **case.extra}
            given = {"qid": case.id, "pred_relevant_windows": case.windows, "pred_saliency_scores": scores}
            metrics = score_moments([given], [record], protocol).metrics
            for name in _HIGHLIGHTS:
                out[name][k] = metrics[name]
    return out


def _charades_text(cases: Sequence[Case], protocol: str) -> tuple[Values, Failures]:
    """Text answers as lmms-eval reads them, whatever `text` made of them."""
    from tubelet.metrics.answers import charades_span

    said = [charades_span(c.text[:20_000]) if read_text(c.text) is not None else None for c in cases]
    windows = [[list(span)] if span else [] for span in said]
    iou = recall_ious(windows, [c.true_windows for c in cases], 1, SPAN_PROTOCOLS[protocol])
    rules = SPAN_PROTOCOLS[protocol]
    values = {"mIoU": iou} | {
        f"R1@{t:g}": hits(iou, t, rules.strict).astype(np.float64) for t in rules.thresholds
    }
    return values, {k: "unread: no span for this reader" for k, span in enumerate(said) if span is None}


def _boxes(cases: Sequence[Case], protocol: str) -> tuple[Values, Failures]:
    scores = score_boxes([c.extra["box"] for c in cases], [c.extra["true"] for c in cases], protocol)
    return dict(scores.values), scores.failures


def _native(case: Case) -> Mapping[str, object]:
    assert case.native is not None  # readers of such formats always give it
    return case.native


def _llavast(cases: Sequence[Case], task: str) -> tuple[Values, Failures]:
    scores = score_llavast([_native(c) for c in cases], task)
    return {"tIoU": scores.tiou, "vIoU": scores.viou, "sIoU": scores.siou}, scores.failures


def _llavast_of(task: str) -> Scorer:
    return lambda cases, protocol: _llavast(cases, task)


def _stvg_r1(cases: Sequence[Case], protocol: str) -> tuple[Values, Failures]:
    scores = score_stvg_r1([_native(c) for c in cases])
    return {"tIoU": scores.tiou, "vIoU": scores.viou}, scores.failures


def _doro(cases: Sequence[Case], protocol: str) -> tuple[Values, Failures]:
    sides = []
    for span, boxes in (("span", "boxes"), ("true_span", "true_boxes")):
        tables = [dict(_native(c)[boxes]) for c in cases]  # type: ignore[call-overload]
        keys = [sorted(t) for t in tables]
        spans = [_native(c)[span] for c in cases]
        sides.append(
            Tubes.stack(spans, keys, [[t[k] for k in ks] for t, ks in zip(tables, keys, strict=True)])  # type: ignore[arg-type]
        )
    scores = score_tubes(sides[0], sides[1], PROTOCOLS[protocol].rules)
    return {"tIoU": scores.tiou, "vIoU": scores.viou, "sIoU": scores.siou}, scores.failures


def _vue_stg(cases: Sequence[Case], protocol: str) -> tuple[Values, Failures]:
    """Raw rows against the annotated seconds, as VUE_STG/evaluate.py compares them: corners sorted, then clipped."""
    true = []
    for case in cases:
        target = case.extra["targets"][0]
        true.append(np.column_stack([np.round(target.times_s * 1000), target.boxes_xyxy]))
    given = [np.empty((0, 5)) if c.native is None else np.asarray(c.native["rows"]) for c in cases]
    scored = score_vue(vue_slices(true), vue_slices(given))
    return {name: scored[key] for name, key in _VUE.items()}, {}


_OWN: dict[tuple[str, str], tuple[tuple[str, ...], Scorer]] = {
    ("stvg_r1", "stvg_r1"): (("stvg",), _stvg_r1),
    ("doro_own", "doro"): (("stvg",), _doro),
    ("vue_stg", "vue_stg"): (("stvg",), _vue_stg),
}
