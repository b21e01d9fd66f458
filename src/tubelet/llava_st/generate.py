"""Ask a loaded LLaVA-ST: read a picture once, answer any number of questions about it.

The prompt up to the question [system turn, picture] does not depend on the question, so its keys and values are
computed once per picture (`read`) and shared by all questions, which are answered side by side (`generate`).
Greedy by default; `temperature` samples, seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tubelet.errors import QueryError
from tubelet.llava_st.checkpoint import Bundle
from tubelet.llava_st.constrain import Alphabet, CoordinateConstraint, Grammar, make_alphabet
from tubelet.llava_st.coordinates import Worded
from tubelet.llava_st.model import Visual, VisualCounts
from tubelet.llava_st.pixels import to_pixels
from tubelet.llava_st.prompts import Prompt, prompt_ids

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Read:
    """A picture, read once: its tokens, and keys and values of the prompt before the question (one row)."""

    visual: Visual | None
    counts: VisualCounts | None
    prefix: tuple[int, ...]
    cache: tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer: ids without the end, text with coordinate words, mean log-probability, did it end by itself.

    logprob: among the words that were allowed. probabilities: one per id, among all words, before a penalty, a
    grammar or a temperature touched the scores: what the model by itself thinks of its word.
    """

    ids: tuple[int, ...]
    text: str
    logprob: float
    ended: bool
    probabilities: tuple[float, ...] = ()


def read_frames(
    bundle: Bundle,
    frames: npt.NDArray[np.uint8],
    image: bool = False,
    positions: Sequence[float] | None = None,
) -> Read:
    """uint8 RGB frames (T, H, W, 3), resized here; image: one frame that is a picture, not a video.

    positions: frame times as fractions of the clip, when they are not uniform.
    """
    pixels = to_pixels(frames, bundle.model.image_size, bundle.pixel_mean, bundle.pixel_std)
    out: Read = read_pixels(bundle, pixels, image, positions)
    return out


@torch.no_grad()  # type: ignore[untyped-decorator]
def read_pixels(
    bundle: Bundle, pixels: torch.Tensor, image: bool = False, positions: Sequence[float] | None = None
) -> Read:
    """Normalised pixels (T, 3, S, S)."""
    model = bundle.model
    pixels = pixels.to(model.device)
    counts = model.counts(None if image else len(pixels))
    if image:
        visual = model.encode_image(pixels)
    else:
        at = None if positions is None else torch.tensor(positions, dtype=torch.float64, device=model.device)
        visual = model.encode_video(pixels, at)
    return _read(bundle, visual, counts)


@torch.no_grad()  # type: ignore[untyped-decorator]
def read_nothing(bundle: Bundle) -> Read:
    """For questions without a picture."""
    return _read(bundle, None, None)


def _read(bundle: Bundle, visual: Visual | None, counts: VisualCounts | None) -> Read:
    from transformers import DynamicCache

    model = bundle.model
    prompt = prompt_ids(bundle.tokenizer, model.words, "", counts)
    prefix = prompt.ids[: prompt.prefix]
    ids = torch.tensor([prefix], device=model.device)
    cache = DynamicCache(config=model.llm.config)
    model.llm.model(inputs_embeds=model.embed(ids, [visual], [None]), past_key_values=cache, use_cache=True)
    return Read(visual, counts, prefix, tuple((layer.keys, layer.values) for layer in cache.layers))


@torch.no_grad()  # type: ignore[untyped-decorator]
def generate(
    bundle: Bundle,
    read: Read,
    questions: Sequence[Worded | str],
    grammars: Sequence[Grammar | None] | None = None,
    max_new_tokens: int = 1024,
    repetition_penalty: float | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    alphabet: Alphabet | None = None,
    absent: Sequence[int] = (),
) -> list[Generated]:
    """Answer questions about one picture, side by side.

    Args:
        grammars: one per question; None leaves an answer free.
        repetition_penalty: default: what the checkpoint says. It sees generated words only.
        temperature: 0 is greedy.
        alphabet: constrain.make_alphabet(tokenizer, words), when it was made before.
        absent: ids of the answer "it is not there", after which an answer may end whatever its grammar requires.

    Raises QueryError for placeholders without values, or a budget too small for the grammar.
    """
    if not questions:
        return []
    if max_new_tokens < 1 or temperature < 0:
        raise QueryError(
            f"max_new_tokens is at least 1 and temperature at least 0, got {max_new_tokens}, {temperature}"
        )
    prompts = [prompt_ids(bundle.tokenizer, bundle.words, asked, read.counts) for asked in questions]
    penalty = bundle.config.repetition_penalty if repetition_penalty is None else repetition_penalty
    processors = _processors(bundle, grammars, len(prompts), max_new_tokens, penalty, alphabet, absent)
    sampler = torch.Generator(device="cpu").manual_seed(seed) if temperature else None
    rows = _write(bundle, read, prompts, processors, max_new_tokens, temperature, sampler)
    return [_finished(bundle, ids, total, chances) for ids, total, chances in zip(*rows, strict=True)]


def _processors(
    bundle: Bundle,
    grammars: Sequence[Grammar | None] | None,
    rows: int,
    budget: int,
    penalty: float,
    alphabet: Alphabet | None,
    absent: Sequence[int],
) -> list[Processor]:
    from transformers import RepetitionPenaltyLogitsProcessor

    out: list[Processor] = []
    if penalty != 1.0:
        out.append(RepetitionPenaltyLogitsProcessor(float(penalty)))
    if grammars is None or all(grammar is None for grammar in grammars):
        return out
    if len(grammars) != rows:
        raise QueryError(f"one grammar per question: {rows} questions, {len(grammars)} grammars")
    alphabet = alphabet or make_alphabet(bundle.tokenizer, bundle.words)
    constrained = [row for row, grammar in enumerate(grammars) if grammar is not None]
    constraint = CoordinateConstraint(alphabet, [g for g in grammars if g is not None], budget, absent=absent)

    def constrain(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[constrained] = constraint(ids[constrained], scores[constrained])
        return scores

    return [*out, constrain]


def _write(
    bundle: Bundle,
    read: Read,
    prompts: Sequence[Prompt],
    processors: Sequence[Processor],
    budget: int,
    temperature: float,
    sampler: torch.Generator | None,
) -> tuple[list[list[int]], list[float], list[list[float]]]:
    """Ids (the end included), the sum of their log-probabilities, and their own probabilities; per prompt."""
    model, end = bundle.model, bundle.words.turn_end
    device, n = model.device, len(prompts)
    suffixes = [list(prompt.ids[prompt.prefix :]) for prompt in prompts]
    lengths = torch.tensor([len(suffix) for suffix in suffixes], device=device)
    longest = int(lengths.max())
    ids = torch.tensor([suffix + [end] * (longest - len(suffix)) for suffix in suffixes], device=device)
    real = torch.arange(longest, device=device) < lengths[:, None]
    mask = torch.cat([torch.ones(n, len(read.prefix), dtype=torch.bool, device=device), real], dim=1).long()
    position = len(read.prefix) + torch.arange(longest, device=device).expand(n, -1)
    embeds = model.embed(ids, [None] * n, [prompt.variables for prompt in prompts])
    cache = _shared_cache(model.llm.config, read, n)
    out = model.llm.model(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
    )
    last = out.last_hidden_state[torch.arange(n, device=device), lengths - 1]
    written = torch.empty(n, 0, dtype=torch.long, device=device)
    chances = torch.empty(n, 0, device=device)
    total = torch.zeros(n, device=device)
    ended = torch.zeros(n, dtype=torch.bool, device=device)
    for step in range(budget):
        own = scores = model.logits(last).float()
        for process in processors:
            scores = process(written, scores)
        token = _choose(scores, temperature, sampler).masked_fill(ended, end)
        gained = scores.log_softmax(-1).gather(1, token[:, None])[:, 0]
        total += gained.masked_fill(ended, 0.0)
        chance = (own.gather(1, token[:, None]) - own.logsumexp(-1, keepdim=True)).exp()
        written, chances = torch.cat([written, token[:, None]], dim=1), torch.cat([chances, chance], dim=1)
        ended |= token == end
        if step == budget - 1 or bool(ended.all()):
            break
        mask = torch.cat([mask, mask.new_ones(n, 1)], dim=1)
        last = model.llm.model(
            inputs_embeds=model.llm.get_input_embeddings()(token[:, None]),
            attention_mask=mask,
            position_ids=(len(read.prefix) + lengths + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, 0]
    rows = [row[: row.index(end) + 1] if end in row else row for row in written.tolist()]
    return rows, total.tolist(), chances.tolist()


def _shared_cache(config: Any, read: Read, rows: int) -> Any:
    """A new cache on the prefix's tensors: they stay as they are."""
    from transformers import DynamicCache

    cache = DynamicCache(config=config)
    for number, (keys, values) in enumerate(read.cache):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
    return cache


def _choose(scores: torch.Tensor, temperature: float, sampler: torch.Generator | None) -> torch.Tensor:
    if sampler is None:
        return scores.argmax(-1)
    chances = (scores / temperature).softmax(-1).cpu()
    return torch.multinomial(chances, 1, generator=sampler)[:, 0].to(scores.device)


def _finished(bundle: Bundle, row: list[int], total: float, chances: list[float]) -> Generated:
    ended = bool(row) and row[-1] == bundle.words.turn_end
    ids = row[:-1] if ended else row
    text: str = bundle.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return Generated(tuple(ids), text, total / max(len(row), 1), ended, tuple(chances[: len(ids)]))
