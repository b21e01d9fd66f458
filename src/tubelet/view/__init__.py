"""Pictures of predictions: boxes on the video, spans on a time axis, frames side by side (numpy and Pillow).

- overlay.py: `write_overlay(video, predictions, "out.mp4")`, and `draw_tubes` for one frame;
- timeline.py: `write_timeline(predictions, "out.png")` or ".svg";
- sheet.py: `write_contact_sheet(clip, predictions, "out.png")`.
"""

from __future__ import annotations

from tubelet.view.overlay import OverlayStyle, draw_tubes, write_overlay
from tubelet.view.rows import Truth
from tubelet.view.sheet import contact_sheet, write_contact_sheet
from tubelet.view.timeline import draw_timeline, write_timeline

__all__ = [
    "OverlayStyle",
    "Truth",
    "contact_sheet",
    "draw_timeline",
    "draw_tubes",
    "write_contact_sheet",
    "write_overlay",
    "write_timeline",
]
