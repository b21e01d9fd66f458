"""What nobody foresaw, as an error of one query: the others are asked, and the message says that it is a bug.

Knows no method. What the user can cause is a `TubeletError` where it happens and passes unchanged; KeyboardInterrupt,
SystemExit and the like pass, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tubelet.errors import ModelError
from tubelet.model_folder import first_line
from tubelet.proposals.detections import CRASHES

BUGS = (*CRASHES, AttributeError, AssertionError, OSError, ImportError)
"""Errors of a defect in tubelet, in a library below it, or in the machine."""


@contextmanager
def named_crashes(what: str) -> Iterator[None]:
    """Turns BUGS into a ModelError that names the class and asks for a report. what: "answering this sentence"."""
    try:
        yield
    except BUGS as error:
        raise ModelError(
            f"{what} stopped with {type(error).__name__}: {first_line(error)}; this is a bug of tubelet or of a "
            "library below it, not of the input: please report it with this line"
        ) from error
