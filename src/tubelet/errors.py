"""The errors tubelet raises on purpose.

Everything a user can cause (a bad file, a bad sentence, a bad model folder, a bad recipe) is a `TubeletError`
with one sentence that says what was expected, what came, and what to do. The command line prints that sentence
and exits with a code that is not 0; any other exception is a defect of tubelet.
"""

from __future__ import annotations


class TubeletError(Exception):
    """Base class of every error raised on purpose; its text is meant for the user."""


class VideoError(TubeletError):
    """A video or image file that is missing, unreadable, empty, or not what was asked for."""


class QueryError(TubeletError):
    """A sentence or a task that cannot be answered as it was asked."""


class ModelError(TubeletError):
    """A model that cannot be found, reached or loaded, or that cannot do what was asked."""


class DataError(TubeletError):
    """An annotation, prediction or JSON record that breaks its schema."""


class RecipeError(TubeletError):
    """A training recipe or a flag with an unknown field or a value that makes no sense."""


class OutputError(TubeletError):
    """A result that could not be written (no permission, no space, a folder in the way)."""
