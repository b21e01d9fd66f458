"""The method on one video and one sentence: read maps, tune prompts if asked to, choose a track and an interval.

    cheap     one forward: the question and the general prompt, rows of the candidate tokens
    spatial   a prompt tuned on "is there <attribute>?", then the map that chooses the track
    assemble  the same on the reversed video; maps are added
    temporal  a prompt tuned on "is there <action>?", then the map that scores the chosen track's frames

Tuning and reading share the same forward of all questions (packed), the first epoch of space and time is one graph, no
word is decoded, no map of all tokens exists, and a video that is read for a map is read up to the last layer of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tubelet.errors import ModelError, QueryError
from tubelet.mllm.parts import Mllm, Prefix, RowSpec, VisualTokens
from tubelet.zeroshot.decompose import SubQueries, question_of
from tubelet.zeroshot.intervals import interval
from tubelet.zeroshot.maps import assemble, choose_token, consistency, layer_range
from tubelet.zeroshot.reattention import first_gradients, gap, tune, yes_no_ids
from tubelet.zeroshot.scoring import track_scores
from tubelet.zeroshot.settings import ZeroShotSettings

if TYPE_CHECKING:
    import torch

FloatArray = npt.NDArray[np.float64]
FrameScorer = Callable[[FloatArray, int], FloatArray]
_LESS_MEMORY = "read fewer frames, lower max_frame_tokens, or switch tuning off (spatial, temporal, assemble)"


@dataclass(frozen=True, slots=True)
class Choice:
    """What was found: the track's row (None: nothing to choose from), scores per track (P,), frames first..last of
    the map's steps (both inside), scores per frame (T,) of the track, the token that was read, with TAS how alike
    the two maps were, (track, first, last) of other targets, whose tracks score almost as high, best first, and how
    surely the model says that the thing is there (`presence`; None where it was not asked)."""

    track: int | None
    scores: FloatArray
    first: int
    last: int
    frame_scores: FloatArray
    token: int | None
    consistency: float | None = None
    others: tuple[tuple[int, int, int], ...] = ()
    sure: float | None = None


def choose(
    mllm: Mllm,
    visual: VisualTokens,
    prefix: Prefix | None,
    weights: FloatArray,
    sentence: str,
    parts: SubQueries,
    settings: ZeroShotSettings,
    frames_of: FrameScorer,
    backwards: Callable[[], VisualTokens] | None = None,
    same: Callable[[int, int], bool] | None = None,
) -> Choice:
    """Which track, and when.

    prefix: the video as it was read; None: read where it is needed (tuning both maps does not need it), and the model
    is not asked whether the thing is there.
    weights: (P, T, h, w) of the tracks on the map's steps. frames_of: (map, track) -> (T,) scores of its frames.
    backwards: makes the reversed video's tokens; default: the tokens flipped. same: do two tracks follow one thing?
    Of those the better one is a target; default: all differ. Raises QueryError for what no model can be asked.
    """
    n_steps = visual.grid.n_steps
    given = prefix if prefix is not None and prefix.n_layers == mllm.capabilities.n_layers else None
    if not len(weights):
        return Choice(None, np.zeros(0), 0, n_steps - 1, np.zeros(n_steps), None)
    if prefix is None and not (
        settings.spatial and settings.temporal and settings.general_tuned and n_steps > 1
    ):
        prefix = _read_video(mllm, visual, settings)
    whole = question_of(sentence, settings.question)
    attribute = whole if parts.attribute is None else question_of(parts.attribute, settings.question)
    action = whole if parts.action is None else question_of(parts.action, settings.question)
    agreement: float | None = None
    if backwards is None:
        backwards = visual.flipped
    tunes_time = settings.temporal and n_steps > 1
    read_space = whole if settings.read == "whole" else attribute
    read_time = whole if settings.read in ("whole", "mixed") else action
    untuned = (attribute, action) if settings.read == "parts" else (whole, whole)
    starts: list[Any] = [None, None]
    if settings.spatial and tunes_time and attribute != action:
        starts = _first_gradients(mllm, visual, [attribute, action], settings)
    plain = prefix
    if settings.spatial:
        space, token = _tuned_map(mllm, visual, attribute, read_space, settings, plain, starts[0])
        sure = None if given is None else presence(mllm, visual, given, whole, settings)
    elif given is not None and untuned[0] == whole:
        # one forward for the map and for the answer
        yes, no = _yes_and_no(mllm, settings)
        space, token, answers = _read_question(mllm, visual, given, whole, settings, None, (*yes, *no))
        sure = _share_of_yes(answers, len(yes))
    else:
        space, token = read_map(mllm, visual, prefix, untuned[0], settings)
        sure = None if given is None else presence(mllm, visual, given, whole, settings)
    if tunes_time and settings.spatial and (action, read_time) == (attribute, read_space):
        time_map = space  # a sentence without parts: the same questions were just tuned and read
    elif tunes_time:
        time_map, _ = _tuned_map(mllm, visual, action, read_time, settings, plain, starts[1])
    elif settings.spatial or (untuned[1] != untuned[0] and n_steps > 1):
        time_map, _ = read_map(mllm, visual, prefix, untuned[1], settings)
    else:
        time_map = space
    if settings.spatial and settings.assemble and n_steps > 1:
        back, _ = _tuned_map(mllm, backwards(), attribute, read_space, settings)
        agreement = consistency(space, back)
        space = assemble(space, back)
    scores = track_scores(space, weights)
    track = int(scores.argmax())
    frames = frames_of(time_map, track)

    def when(row: int, of_row: FloatArray) -> tuple[int, int]:
        return interval(of_row, settings.interval, settings.k, weights[row].any((1, 2)))

    first, last = when(track, frames)
    targets = _targets(scores, settings, same or (lambda one, other: False))
    others = tuple((other, *when(other, frames_of(time_map, other))) for other in targets[1:])
    return Choice(track, scores, first, last, frames, token, agreement, others, sure)


def presence(
    mllm: Mllm, visual: VisualTokens, prefix: Prefix, question: str, settings: ZeroShotSettings
) -> float | None:
    """How surely the model says that the thing is there: its yes against its no to the question, in (0, 1).

    The share of yes in the first word of the answer, without any tuned prompt (which is made to say yes). prefix: of
    all layers. None for a tokenizer without yes and no. Only as good as the model is at saying no.
    """
    import torch

    yes, no = _yes_and_no(mllm, settings)
    if not yes:
        return None
    with torch.no_grad():
        (reading,) = mllm.ask(prefix, [mllm.prompt(visual, question)], token_ids=(*yes, *no))
    return _share_of_yes(reading.logits, len(yes))


def _yes_and_no(mllm: Mllm, settings: ZeroShotSettings) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """As `yes_no_ids`, but nothing for a tokenizer without them."""
    try:
        return yes_no_ids(mllm.tokenizer, settings.yes_no)
    except ModelError:
        return (), ()


def _share_of_yes(logits: torch.Tensor | None, n_yes: int) -> float | None:
    """logits: of the spellings of yes, then of no."""
    if logits is None or not n_yes:
        return None
    return float(gap(logits.double(), range(n_yes), range(n_yes, len(logits))).sigmoid())


def _targets(scores: FloatArray, settings: ZeroShotSettings, same: Callable[[int, int], bool]) -> list[int]:
    """At most `targets` rows, best first, of tracks that score almost as the best and are different things."""
    found: list[int] = []
    for row in np.argsort(-scores, kind="stable").tolist():
        if len(found) == settings.targets or scores[row] < settings.target_share * scores.max():
            break
        if not any(same(row, kept) for kept in found):
            found.append(row)
    return found


def _read_video(
    mllm: Mllm, visual: VisualTokens, settings: ZeroShotSettings, prompt: torch.Tensor | None = None
) -> Prefix:
    """For maps: the layers up to the last one that is read, no graph."""
    import torch

    layers = layer_range(settings.layers, mllm.capabilities.n_layers)
    with torch.no_grad():
        return mllm.prefix(visual, prompt, None if layers is None else layers[-1] + 1)


def read_map(
    mllm: Mllm,
    visual: VisualTokens,
    prefix: Prefix | None,
    question: str,
    settings: ZeroShotSettings,
    general_prefix: Prefix | None = None,
) -> tuple[FloatArray, int | None]:
    """The relative map (T, h, w) of a question, and the token it was read from.

    general_prefix: the video under the general prompt, where that is another one than under the question.
    """
    found, token, _ = _read_question(mllm, visual, prefix, question, settings, general_prefix)
    return found, token


def _read_question(
    mllm: Mllm,
    visual: VisualTokens,
    prefix: Prefix | None,
    question: str,
    settings: ZeroShotSettings,
    general_prefix: Prefix | None = None,
    token_ids: tuple[int, ...] = (),
) -> tuple[FloatArray, int | None, torch.Tensor | None]:
    """As `read_map`; and the logits of the question's answer at token_ids, where there are any (all layers are run)."""
    import torch

    if prefix is None:
        prefix = _read_video(mllm, visual, settings)
    prompts = [mllm.prompt(visual, text) for text in (question, settings.general)]
    layers = layer_range(settings.layers, mllm.capabilities.n_layers)
    tokens: Any = tuple(range(-settings.candidates, 0)) if settings.candidates else "candidates"
    spec = RowSpec(tokens, layers)
    with torch.no_grad():
        if general_prefix is None:
            answers = token_ids or None
            asked, general = mllm.ask(prefix, prompts, spec, answers, logits=answers is not None)
        else:
            (asked,) = mllm.ask(prefix, prompts[:1], spec, logits=False)
            (general,) = mllm.ask(general_prefix, prompts[1:], spec, logits=False)
    assert asked.rows is not None and general.rows is not None
    rows = [r.rows.double().cpu().numpy() for r in (asked, general) if r.rows is not None]
    return *choose_token(rows[0], rows[1], asked.offsets, settings), asked.logits


def _tuned_map(
    mllm: Mllm,
    visual: VisualTokens,
    learn: str,
    read: str,
    settings: ZeroShotSettings,
    plain: Prefix | None = None,
    first: torch.Tensor | None = None,
) -> tuple[FloatArray, int | None]:
    """The map of `read` after the prompt was tuned to answer `learn` with yes.

    plain: the video without a prompt, where it was read before. first: the gradient of the first epoch, if known.
    """
    import torch

    from tubelet.mllm.memory import memory_guard

    gaps_of, start = _gaps(mllm, visual, [learn], settings)
    with memory_guard("tune a visual prompt", _LESS_MEMORY):
        prompt = tune(gaps_of, start, settings, first)
    if not torch.isfinite(prompt).all():
        raise QueryError(
            f"tuning ran away at rate {settings.rate:g}: lower the rate, or use the loss that is linear (published)"
        )
    tuned = _read_video(mllm, visual, settings, prompt)
    if settings.general_tuned:
        plain = None
    elif plain is None:
        plain = _read_video(mllm, visual, settings)
    return read_map(mllm, visual, tuned, read, settings, plain)


def _first_gradients(
    mllm: Mllm, visual: VisualTokens, learn: list[str], settings: ZeroShotSettings
) -> list[Any]:
    """All prompts start at zero: the first epoch of space and of time is one forward with one graph."""
    from tubelet.mllm.memory import memory_guard

    if not settings.epochs:
        return [None] * len(learn)
    gaps_of, start = _gaps(mllm, visual, learn, settings)
    with memory_guard("tune a visual prompt", _LESS_MEMORY):
        return list(first_gradients(gaps_of, start, settings.loss))


def _gaps(
    mllm: Mllm, visual: VisualTokens, learn: list[str], settings: ZeroShotSettings
) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """(prompt -> gaps of the general prompt and of each question, prompt of zeros)."""
    import torch

    yes, no = yes_no_ids(mllm.tokenizer, settings.yes_no)
    prompts = [mllm.prompt(visual, text) for text in (settings.general, *learn)]
    at = range(len(yes)), range(len(yes), len(yes) + len(no))

    def gaps_of(delta: torch.Tensor) -> torch.Tensor:
        readings: list[Any] = mllm.ask(mllm.prefix(visual, delta), prompts, token_ids=(*yes, *no))
        return torch.stack([gap(reading.logits, *at) for reading in readings])

    return gaps_of, torch.zeros(visual.tokens.shape, dtype=torch.float32, device=visual.tokens.device)
