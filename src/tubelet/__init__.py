"""tubelet finds when and where: a video and a sentence go in, a tube comes out.

    import tubelet
    g = tubelet.load()                                  # the embedded default
    prediction = g.ground("clip.mp4", "the red circle that spins")
    print(prediction.tube.span, prediction.tube.box_at(2.5))

Names are imported when they are first used: `import tubelet` is fast and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Clip": "tubelet.frames",
    "FrameGrid": "tubelet.frames",
    "Grounder": "tubelet.grounder",
    "Prediction": "tubelet.tube",
    "Span": "tubelet.tube",
    "Tube": "tubelet.tube",
    "TubeletError": "tubelet.errors",
    "Video": "tubelet.video",
    "VideoWriter": "tubelet.video",
    "contact_sheet": "tubelet.view",
    "draw_timeline": "tubelet.view",
    "draw_tubes": "tubelet.view",
    "embedded_models": "tubelet.grounder",
    "load": "tubelet.grounder",
    "open_video": "tubelet.video",
    "read_clip": "tubelet.video",
    "sample_rate": "tubelet.video",
    "sample_uniform": "tubelet.video",
    "write_contact_sheet": "tubelet.view",
    "write_overlay": "tubelet.view",
    "write_timeline": "tubelet.view",
}

__all__ = ["__version__", *sorted(_WHERE)]

if TYPE_CHECKING:
    from tubelet.errors import TubeletError  # noqa: F401
    from tubelet.frames import Clip, FrameGrid  # noqa: F401
    from tubelet.grounder import Grounder, embedded_models, load  # noqa: F401
    from tubelet.tube import Prediction, Span, Tube  # noqa: F401
    from tubelet.video import Video, VideoWriter, open_video, read_clip, sample_rate, sample_uniform  # noqa: F401
    from tubelet.view import (  # noqa: F401
        contact_sheet,
        draw_timeline,
        draw_tubes,
        write_contact_sheet,
        write_overlay,
        write_timeline,
    )


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tubelet' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
