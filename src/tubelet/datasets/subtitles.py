"""Subtitles of videos (SubRip, .srt): when which words are shown. Knows nothing of datasets.

    12
    00:01:02,500 --> 00:01:04,000
    <font color="white">Hi guys</font>

Numbers of cues are ignored, markup is taken out, lines of a cue are joined. A cue without words or without a length
is left out, as is text without a time; a file without a single cue is a DataError.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError

Cue = tuple[float, float, str]
"""start_s, end_s, words."""

_STAMP = r"(\d{1,3}):(\d{1,2}):(\d{1,2})(?:[,.](\d{1,3}))?"
_TIMES = re.compile(rf"{_STAMP}\s*-->\s*{_STAMP}", re.ASCII)
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
_MOST_BYTES = 1 << 25  # an hour of talk is some 100 kB


def read_srt(path: Path) -> tuple[Cue, ...]:
    """Cues in the order of the file. DataError for a file that cannot be read, is too large, or has no cue."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > _MOST_BYTES:
        raise DataError(f"{path} is larger than {_MOST_BYTES >> 20} MiB: no subtitles are")
    cues: list[Cue] = []
    times: tuple[float, float] | None = None
    words: list[str] = []
    for line in [*data.decode("utf-8-sig", errors="replace").splitlines(), ""]:
        found = _TIMES.search(line)
        if found is None and line.strip():
            words.append(_MARKUP.sub("", line).strip())
            continue
        if times is not None and times[1] > times[0] and any(words):
            cues.append((*times, " ".join(w for w in words if w)))
        times, words = (None if found is None else (_seconds(found, 1), _seconds(found, 5))), []
    if not cues:
        raise DataError(f"{path} has no subtitles: expected cues such as 00:00:01,000 --> 00:00:02,500")
    return tuple(cues)


def words_at(cues: Sequence[Cue], times_s: npt.ArrayLike | None) -> str:
    """What is shown at any of these times (None: ever), a line per cue, in order."""
    if times_s is None:
        return "\n".join(words for _, _, words in cues)
    at = np.sort(np.asarray(times_s, dtype=np.float64).reshape(-1))
    # a cue is shown when at least one of the moments lies in [start, end)
    first = np.searchsorted(at, np.array([start for start, _, _ in cues], dtype=np.float64))
    past = np.searchsorted(at, np.array([end for _, end, _ in cues], dtype=np.float64))
    shown: list[bool] = (past > first).tolist()
    return "\n".join(words for (_, _, words), here in zip(cues, shown, strict=True) if here)


def _seconds(found: re.Match[str], first: int) -> float:
    hours, minutes, seconds, part = (found[first + k] for k in range(4))
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{part or 0}")
