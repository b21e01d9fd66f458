"""Masks as COCO run lengths: `Rle`, and the published text code of them.

A mask is read column by column; `counts` are the lengths of its runs of 0, 1, 0, 1, ... written six bits at a
time as text, each length from the fourth on as the difference to the one two before. The text is what pycocotools
writes as "counts", so files can be exchanged with it; pycocotools itself is not needed.

Knows numpy only. Masks are bool (H, W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Rle:
    """One mask: its size in pixels and its run lengths as COCO's text. Decoded (and checked) by `decode`."""

    height: int
    width: int
    counts: str

    def to_dict(self) -> dict[str, Any]:
        """As COCO writes it: {"size": [height, width], "counts": text}."""
        return {"size": [self.height, self.width], "counts": self.counts}

    @classmethod
    def from_dict(cls, data: Any) -> Rle:
        """From COCO's compressed or uncompressed (a list of lengths) form. Raises DataError."""
        size = data.get("size") if isinstance(data, Mapping) else None
        if not isinstance(size, list | tuple) or len(size) != 2 or not all(_is_size(n) for n in size):
            raise DataError(
                f"a mask is an object with size [height, width] and counts (COCO RLE), got {data!r:.80}"
            )
        counts = data.get("counts")
        if isinstance(counts, bytes):
            counts = counts.decode("ascii", errors="replace")
        if isinstance(counts, list | tuple):
            if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts):
                raise DataError(f"run lengths are whole numbers of at least 0, got {counts!r:.80}")
            counts = lengths_to_text(list(counts))
        if not isinstance(counts, str):
            raise DataError(f"the counts of a mask are text or a list of numbers, got {counts!r:.80}")
        return cls(int(size[0]), int(size[1]), counts)


def encode(mask: npt.ArrayLike) -> Rle:
    """A (H, W) mask (bool, or anything that is zero or not) as run lengths. Raises DataError."""
    pixels = np.asarray(mask)
    if pixels.ndim != 2 or pixels.size == 0:
        raise DataError(f"a mask is (height, width), got {pixels.shape}")
    column_wise = (pixels != 0).ravel(order="F")
    changes = np.flatnonzero(column_wise[1:] != column_wise[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [column_wise.size]])).tolist()
    if column_wise[0]:
        lengths.insert(0, 0)  # the first run is of zeros
    return Rle(pixels.shape[0], pixels.shape[1], lengths_to_text(lengths))


def decode(rle: Rle) -> Mask:
    """The (H, W) mask. Raises DataError when the runs do not fill it exactly."""
    lengths = np.array(text_to_lengths(rle.counts), dtype=np.int64)
    if (lengths < 0).any() or lengths.sum() != rle.height * rle.width:
        raise DataError(
            f"the runs of a mask must fill its {rle.height} x {rle.width} pixels, they fill {lengths.sum()}: "
            "the file is damaged, or height and width are exchanged"
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape((rle.height, rle.width), order="F")


def box_of(mask: Mask) -> npt.NDArray[np.float64] | None:
    """The (4,) box around a mask as fractions of its picture, or None when it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return None
    height, width = mask.shape
    return np.array(
        [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]
    )


def lengths_to_text(lengths: list[int]) -> str:
    out = bytearray()
    for place, length in enumerate(lengths):
        number = length - lengths[place - 2] if place > 2 else length
        while True:
            bits = number & 0x1F
            number >>= 5
            more = number != -1 if bits & 0x10 else number != 0
            out.append(bits + (0x20 if more else 0) + 48)
            if not more:
                break
    return out.decode("ascii")


def text_to_lengths(text: str) -> list[int]:
    lengths: list[int] = []
    number = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            raise DataError(f"the counts of a mask hold {letter!r}, which is not of COCO's run-length text")
        number |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            number -= 1 << shift
        if len(lengths) > 2:
            number += lengths[-2]
        lengths.append(number)
        number = shift = 0
    if shift:
        raise DataError("the counts of a mask end in the middle of a number: the file is damaged")
    return lengths


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
