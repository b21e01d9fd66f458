"""`Truth`: what is true of one query, in tubelet's own conventions (seconds, half-open spans, fractions)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tubelet.tube import Span


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of one query: span None means "not in this video".

    frame_times_s (N,): times of all native frames; boxes_xyxy (M, 4) at box_times_s (M,): the true boxes, on
    those native frames of the span where the target can be seen.
    """

    span: Span | None
    frame_times_s: npt.NDArray[np.float64]
    box_times_s: npt.NDArray[np.float64]
    boxes_xyxy: npt.NDArray[np.float64]
