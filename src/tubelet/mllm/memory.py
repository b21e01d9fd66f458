"""Out of memory as a sentence that says what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tubelet.errors import ModelError


@contextmanager
def memory_guard(what: str, remedy: str) -> Iterator[None]:
    """Turns what torch raises, on a GPU or on the CPU, into a ModelError: "not enough memory to {what}: {remedy}"."""
    import torch

    try:
        yield
    except MemoryError as error:
        raise ModelError(f"not enough memory to {what}: {remedy}") from error
    except RuntimeError as error:
        # the CPU's allocator has no class of error of its own
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise ModelError(f"not enough memory on the device to {what}: {remedy}") from error
        raise
