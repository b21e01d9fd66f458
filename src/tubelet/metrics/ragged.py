"""Many tubes in one piece: boxes of different numbers per query, concatenated, with offsets.

`Tubes` is what every tube metric works on. It does not know seconds from frames: a *position* is a frame index,
a second or a millisecond, whichever the protocol counts in. Looking up and interpolating boxes is done for all
queries at once; no Python loop runs over frames or queries.

Shapes: Q queries, N boxes in all; `offsets` (Q + 1,) with offsets[0] = 0 and offsets[Q] = N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Interpolate = Literal["none", "linear", "hold"]
EPS = 1e-6
"""Two roundings of one moment may differ by this much (as in `tubelet.tube`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """Q lists of positions: at (N,), offsets (Q + 1,); positions increase inside each list."""

    at: FloatArray
    offsets: IntArray

    def __post_init__(self) -> None:
        at = np.asarray(self.at, dtype=np.float64)
        offsets = np.asarray(self.offsets, dtype=np.int64)
        _check(at, offsets)
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "offsets", offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def stack(cls, lists: Sequence[npt.ArrayLike]) -> Ragged:
        return cls(_concatenate(lists), offsets_of(lists))

    @classmethod
    def _known(cls, at: FloatArray, offsets: IntArray) -> Ragged:
        """Of arrays that are known to be right: cut out of others that were checked."""
        out = object.__new__(cls)
        object.__setattr__(out, "at", at)
        object.__setattr__(out, "offsets", offsets)
        return out

    def count_between(self, low: FloatArray, high: FloatArray, closed: bool) -> FloatArray:
        """(Q,) positions with low <= at < high, or <= high when `closed`."""
        rows = np.arange(len(self), dtype=np.int64)
        if closed:
            upper = last_not_after(self.at, self.offsets, high, rows) + 1 - self.offsets[:-1]
        else:
            upper = count_before(self, high, rows)
        counts: FloatArray = np.maximum(upper - count_before(self, low, rows), 0).astype(np.float64)
        return counts

    def part(self, rows: slice) -> Ragged:
        """Consecutive queries."""
        offsets = self.offsets[rows.start : rows.stop + 1]
        return Ragged._known(self.at[offsets[0] : offsets[-1]], offsets - offsets[0])


@dataclass(frozen=True, slots=True, eq=False)
class Tubes:
    """Q tubes: spans (Q, 2), NaN where no span was stated; boxes_xyxy (N, 4) at positions at (N,).

    Whether an end of a span is inside is a rule of the protocol, not of the tube. Boxes may be fractions or
    pixels, as long as prediction and truth agree. Raises DataError when shapes or order are wrong.
    """

    spans: FloatArray
    at: FloatArray
    boxes_xyxy: FloatArray
    offsets: IntArray

    def __post_init__(self) -> None:
        spans = np.asarray(self.spans, dtype=np.float64).reshape(-1, 2)
        at = np.asarray(self.at, dtype=np.float64)
        boxes = np.asfortranarray(np.asarray(self.boxes_xyxy, dtype=np.float64).reshape(-1, 4))
        offsets = np.asarray(self.offsets, dtype=np.int64)
        _check(at, offsets)
        if len(spans) != len(offsets) - 1 or len(boxes) != len(at):
            raise DataError(
                f"tubes need one span per query and one box per position, got {len(spans)} spans for "
                f"{len(offsets) - 1} queries and {len(boxes)} boxes for {len(at)} positions"
            )
        for name, value in (("spans", spans), ("at", at), ("boxes_xyxy", boxes), ("offsets", offsets)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def stack(
        cls,
        spans: Sequence[Sequence[float] | None],
        positions: Sequence[npt.ArrayLike],
        boxes_xyxy: Sequence[npt.ArrayLike],
        *,
        check: bool = True,
    ) -> Tubes:
        """From one span (None: none stated), one list of positions and one (N, 4) array per query.

        check=False: positions and shapes are known to be right (they come from `tubelet.tube.Tube`).
        """
        columns_of: list[Any] = [
            (np.asarray(b, dtype=np.float64).reshape(-1, 4) if check else b).T  # type: ignore[union-attr]
            for b in boxes_xyxy
        ]
        stated = np.array(
            [(np.nan, np.nan) if s is None else (s[0], s[1]) for s in spans], dtype=np.float64
        ).reshape(-1, 2)
        # written column by column, which is how they are read
        columns = np.empty((4, sum(b.shape[1] for b in columns_of)))
        if columns_of:
            np.concatenate(columns_of, axis=1, out=columns)
        make = cls if check else cls._known
        return make(stated, _concatenate(positions), columns.T, offsets_of(positions))

    @classmethod
    def _known(cls, spans: FloatArray, at: FloatArray, boxes_xyxy: FloatArray, offsets: IntArray) -> Tubes:
        """Of arrays that are known to be right: cut out of others that were checked."""
        out = object.__new__(cls)
        for name, value in (("spans", spans), ("at", at), ("boxes_xyxy", boxes_xyxy), ("offsets", offsets)):
            object.__setattr__(out, name, value)
        return out

    def with_spans(self, spans: FloatArray) -> Tubes:
        """The same boxes under other spans (Q, 2)."""
        if spans.shape != self.spans.shape:
            raise DataError(f"expected one span per query, {self.spans.shape}, got {spans.shape}")
        return Tubes._known(spans, self.at, self.boxes_xyxy, self.offsets)

    @property
    def rows(self) -> IntArray:
        """(N,) which query each box belongs to."""
        return rows_of(self.offsets)

    def keep(self, mask: BoolArray) -> Tubes:
        """The same tubes with the boxes of `mask` (N,) only."""
        kept = segment_sum(mask, self.rows, len(self)).astype(np.int64)
        return Tubes(self.spans, self.at[mask], self.boxes_xyxy[mask], np.concatenate([[0], np.cumsum(kept)]))

    def part(self, rows: slice) -> Tubes:
        """Consecutive queries."""
        offsets = self.offsets[rows.start : rows.stop + 1]
        kept = slice(offsets[0], offsets[-1])
        return Tubes._known(self.spans[rows], self.at[kept], self.boxes_xyxy[kept], offsets - offsets[0])

    def boxes_at(
        self, at: FloatArray, rows: IntArray, how: Interpolate, counts: IntArray | None = None
    ) -> FloatArray:
        """Boxes (M, 4) of queries rows (M,) at positions at (M,); NaN where a tube says nothing.

        none: only where there is a box; linear: also between two boxes; hold: also before the first and after
        the last box, as long as the position lies in the stated span. counts: see `last_not_after`.
        """
        if len(self.at) == 0 or len(at) == 0:
            return np.full((len(at), 4), np.nan, order="F")
        left = last_not_after(self.at, self.offsets, at, rows, counts)
        first = _spread(self.offsets[:-1], rows, counts)
        has_left = left >= first
        # an empty tube at the end points past the array
        lo = np.minimum(np.maximum(left, first), len(self.at) - 1)
        at_lo = self.at[lo]
        on_box = has_left & (at_lo == at)
        if how == "none":
            return _columns(self.boxes_xyxy, lo, on_box)
        past = _spread(self.offsets[1:], rows, counts)
        if how == "hold":
            # False where no span was stated
            outside = at < _spread(self.spans[:, 0] - EPS, rows, counts)
            outside |= at > _spread(self.spans[:, 1] + EPS, rows, counts)
            known = (past > first) & ~outside
        else:
            known = on_box | (has_left & (left + 1 < past))
        out = _columns(self.boxes_xyxy, lo, known)
        between = np.flatnonzero(known & ~on_box & has_left & (left + 1 < past))
        if len(between):
            before, after = left[between], left[between] + 1
            weight = (at[between] - self.at[before]) / (self.at[after] - self.at[before])
            for k in range(4):
                column = self.boxes_xyxy[:, k]
                low = column[before]
                out[between, k] = low + weight * (column[after] - low)
        return out


def _columns(boxes: FloatArray, index: IntArray, known: BoolArray) -> FloatArray:
    """Rows `index` of boxes (N, 4), NaN where not known; columns lie together, which is how they are used."""
    out = np.empty((len(index), 4), order="F")
    unknown = None if known.all() else ~known
    for k in range(4):
        np.take(boxes[:, k], index, out=out[:, k], mode="clip")  # mode: without it numpy buffers the output
        if unknown is not None:
            np.copyto(out[:, k], np.nan, where=unknown)
    return out


def rows_of(offsets: IntArray) -> IntArray:
    """(N,) the query of every entry: [0, 2, 3] -> [0, 0, 1]."""
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))


def offsets_of(lists: Sequence[npt.ArrayLike]) -> IntArray:
    lengths = np.array([len(x) for x in lists], dtype=np.int64)  # type: ignore[arg-type]
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


def segment_sum(values: npt.ArrayLike, rows: IntArray, n: int) -> FloatArray:
    """(n,) sums of values (N,) by query; queries without values get 0."""
    sums: FloatArray = np.bincount(rows, weights=np.asarray(values, dtype=np.float64), minlength=n).astype(
        np.float64, copy=False
    )
    return sums


def sum_by(values: FloatArray | BoolArray, offsets: IntArray) -> FloatArray:
    """(Q,) sums of values (N,) that lie in order, query by query; queries without values get 0."""
    out = np.zeros(len(offsets) - 1)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        added = values.view(np.int8) if values.dtype == np.bool_ else values
        kind = np.int64 if values.dtype == np.bool_ else np.float64
        out[filled] = np.add.reduceat(added, offsets[:-1][filled], dtype=kind)
    return out


def last_not_after(
    at: FloatArray,
    offsets: IntArray,
    needles: FloatArray,
    rows: IntArray,
    counts: IntArray | None = None,
) -> IntArray:
    """(M,) index into `at` of the last position <= needle in that row; below offsets[row] if there is none.

    Positions are mostly evenly spaced: their place is computed, checked, and searched for only where that fails.
    counts (Q,): how many needles each row has, where rows are in order; it only makes this faster.
    """
    lengths = np.diff(offsets)
    if len(at) == 0 or len(needles) == 0:
        nothing: IntArray = offsets[rows] - 1
        return nothing
    first_at = at[np.minimum(offsets[:-1], len(at) - 1)]
    range_at = at[np.maximum(offsets[1:] - 1, 0)] - first_at
    per_unit = np.divide(
        lengths - 1, range_at, out=np.zeros(len(lengths)), where=(range_at > EPS) & (lengths > 1)
    )
    first, last = _spread(offsets[:-1], rows, counts), _spread(offsets[1:] - 1, rows, counts)
    # seconds like 1e308 are beyond every list, and infinity is, too
    with np.errstate(over="ignore", invalid="ignore"):
        steps = (needles - _spread(first_at, rows, counts)) * _spread(per_unit, rows, counts) + EPS
    steps = np.minimum(np.fmax(steps, 0.0), float(len(at)))
    index: IntArray = np.minimum(first + steps.astype(np.int64), last)
    following = at[np.minimum(index + 1, len(at) - 1)]
    good = (at[index] <= needles) & ((following > needles) | (index == last))
    if not good.all():
        # most of the rest lies before its whole list, or the list is empty
        before = needles < _spread(np.where(lengths > 0, first_at, np.inf), rows, counts)
        np.copyto(index, first - 1, where=before)
        rest = np.flatnonzero(~(good | before))
        if len(rest):
            keys = _keys(rows_of(offsets), at)
            index[rest] = np.searchsorted(keys, _keys(rows[rest], needles[rest]), side="right") - 1
    return index


def _spread(values: npt.NDArray[Any], rows: IntArray, counts: IntArray | None) -> npt.NDArray[Any]:
    """values[rows], faster where it is known that row k comes counts[k] times, in order."""
    return values[rows] if counts is None else np.repeat(values, counts)


def is_listed(listed: Ragged, at: FloatArray, rows: IntArray) -> BoolArray:
    """(M,) whether position at[m] is in list rows[m]."""
    if len(listed.at) == 0:
        return np.zeros(len(at), dtype=bool)
    index = last_not_after(listed.at, listed.offsets, at, rows)
    found: BoolArray = (index >= listed.offsets[rows]) & (listed.at[np.maximum(index, 0)] == at)
    return found


def count_before(listed: Ragged, at: FloatArray, rows: IntArray) -> IntArray:
    """(M,) how many positions of list rows[m] lie before at[m]: the index of the first one that does not."""
    index = last_not_after(listed.at, listed.offsets, at, rows)
    found = index >= listed.offsets[rows]
    if len(listed.at):
        index = index - (found & (listed.at[np.maximum(index, 0)] == at))
    counts: IntArray = index + 1 - listed.offsets[rows]
    return counts


def merge(a: Ragged, b: Ragged) -> Ragged:
    """The union of two lists of positions, query by query."""
    keys = np.unique(np.concatenate([_keys(rows_of(a.offsets), a.at), _keys(rows_of(b.offsets), b.at)]))
    counts = np.bincount(keys.real.astype(np.int64), minlength=len(a))
    return Ragged(keys.imag.copy(), np.concatenate([[0], np.cumsum(counts)]))


def _keys(rows: IntArray, at: FloatArray) -> npt.NDArray[np.complex128]:
    """Pairs (query, position) that numpy compares exactly and in this order: it sorts complex by real, then imag."""
    keys = np.empty(len(at), dtype=np.complex128)
    keys.real, keys.imag = rows, at
    return keys


def _concatenate(lists: Sequence[npt.ArrayLike]) -> FloatArray:
    if not len(lists):
        return np.empty(0)
    return np.concatenate([np.asarray(x) for x in lists], dtype=np.float64)


def _check(at: FloatArray, offsets: IntArray) -> None:
    if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise DataError("offsets (Q + 1,) start at 0 and never decrease")
    if at.ndim != 1 or offsets[-1] != len(at):
        raise DataError(f"the last offset is the number of positions, got {offsets[-1]} for {at.shape}")
    # what increases strictly between two finite ends is finite: only the ends are looked at
    rises = at[1:] > at[:-1]
    starts = offsets[1:-1][(offsets[1:-1] > 0) & (offsets[1:-1] < len(at))]
    rises[starts - 1] = True
    if len(at) and not (
        np.isfinite(at[starts]).all() and np.isfinite(at[starts - 1]).all() and np.isfinite(at[[0, -1]]).all()
    ):
        raise DataError("positions must be finite, they hold NaN or infinity")
    if not rises.all():
        if not np.isfinite(at).all():
            raise DataError("positions must be finite, they hold NaN or infinity")
        raise DataError("positions must increase strictly inside each tube (a moment given twice?)")
