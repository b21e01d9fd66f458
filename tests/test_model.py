"""SpaceVLLM against transformers' own forward and generate; packed questions against single ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from tubelet.packed import block_mask
from tubelet.spacevllm.batch import normalise
from tubelet.spacevllm.config import DecoderConfig, SpaceVLLMConfig
from tubelet.spacevllm.model import SpaceVLLM, TrainOutput
from tubelet.spacevllm.pack import Packed, Suffix, pack
from tubelet.spacevllm.prompts import Prefix, encode, encode_query, make_prefix

QUESTIONS = (
    ("find the red circle that spins", "1.2s-3.4s."),
    ("when the light is off", "0.5s-2.0s."),
    ("find a blue star", "not in this video."),
)
PAINTED = [1.0, 0.0, -0.5, 2.0]


def pixels_of(n_frames: int, size: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    raw = torch.from_numpy(rng.integers(0, 256, (n_frames, 3, size, size), dtype=np.uint8))
    return normalise(raw, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def prefix_of(bundle: Any, n_frames: int, is_image: bool = False) -> Prefix:
    times = np.arange(n_frames) * 0.7 + 0.3
    return make_prefix(
        bundle.model.config,
        bundle.layout,
        bundle.tokenizer,
        times,
        5.0,
        bundle.model.tokens_per_frame,
        is_image,
    )


def suffix_of(bundle: Any, question: str, answer: str = "") -> Suffix:
    ids = (*encode(bundle.tokenizer, answer), *bundle.layout.end) if answer else ()
    return Suffix(tuple(encode_query(bundle.tokenizer, question)), bundle.layout.tail, ids)


def all_outputs(out: TrainOutput) -> dict[str, torch.Tensor]:
    found = {
        "boxes": out.decoder.boxes_cxcywh,
        "activity": out.decoder.activity_logits,
        "presence": out.decoder.presence_logits,
        "quality": out.decoder.quality_logits,
        "answers": out.answer_logits,
    }
    if out.decoder.cell_logits is not None:
        found["cells"] = out.decoder.cell_logits
    if out.middle_logits is not None:
        found["middle"] = out.middle_logits.transpose(1, 2)  # frames second, as in the others
    return found


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= tolerance, f"differs by {float((a - b).abs().max()):.2e}"


# --- the stock forward ---------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [True, False])
@pytest.mark.parametrize("n_frames", [1, 3, 4])
def test_stock_forward_splices_the_same_way(
    new_tiny: Callable[..., Any], queries: bool, n_frames: int
) -> None:
    """transformers' forward on our prefix ids and the raw pixels = our embed() and language model."""
    bundle = new_tiny(queries=queries)
    model = bundle.model
    prefix, pixels = prefix_of(bundle, n_frames), pixels_of(n_frames, model.image_size)
    packed = pack([prefix], [[]])
    with torch.no_grad():
        stock = model.base(
            input_ids=packed.ids, pixel_values_videos=pixels[None], output_hidden_states=True, use_cache=False
        )
        embeds = model.embed(packed, model.frame_features(pixels))
        ours = model.base.model.language_model(inputs_embeds=embeds, position_ids=packed.position)
        close(ours.last_hidden_state, stock.hidden_states[-1], 1e-5)
        close(model.base.lm_head(ours.last_hidden_state), stock.logits, 1e-5)
    placeholders = int((packed.ids == bundle.layout.video_token).sum())
    assert placeholders == n_frames * model.tokens_per_frame + 1  # and the newline
    tokens = [int(t) for t in packed.ids[0] if int(t) in bundle.layout.query_tokens]
    assert tokens == list(bundle.layout.query_tokens[:n_frames] if queries else ())


def test_stock_forward_with_question_and_pixels_matters(
    new_tiny: Callable[..., Any], tiny_config: SpaceVLLMConfig
) -> None:
    """The whole turn, question included; and other pixels give other logits (the comparison can fail)."""
    tiny_bundle = new_tiny(replace(tiny_config, motion_layers=0))
    model = tiny_bundle.model
    prefix, pixels = prefix_of(tiny_bundle, 4), pixels_of(4, model.image_size)
    suffix = suffix_of(tiny_bundle, *QUESTIONS[0])
    packed = pack([prefix], [[suffix]])
    with torch.no_grad():
        ours = model(packed, pixels).answer_logits
        stock = model.base(input_ids=packed.ids, pixel_values_videos=pixels[None]).logits
        other = model.base(input_ids=packed.ids, pixel_values_videos=pixels_of(4, model.image_size, 1)[None])
    close(ours, stock[0, packed.answer_at], 1e-5)
    assert float((other.logits - stock).abs().max()) > 1e-2


def test_vision_chunks_change_no_number(tiny_bundle: Any) -> None:
    model = tiny_bundle.model
    pixels = pixels_of(4, model.image_size)
    with torch.no_grad():
        whole = model.frame_features(pixels)
        for chunk in (1, 3, 4, 32):
            close(model.frame_features(pixels, chunk), whole, 1e-5)
    assert whole.shape == (4, model.tokens_per_frame, 32)


# --- packing -------------------------------------------------------------------------------------


def packed_batch(bundle: Any) -> tuple[list[Prefix], list[list[Suffix]], list[torch.Tensor]]:
    """Three rows: a video of 4 frames with 3 questions, an image with 1, a video of 2 frames with 2."""
    size = bundle.model.image_size
    prefixes = [prefix_of(bundle, 4), prefix_of(bundle, 1, is_image=True), prefix_of(bundle, 2)]
    pixels = [pixels_of(4, size, 0), pixels_of(1, size, 1), pixels_of(2, size, 2)]
    suffixes = [
        [suffix_of(bundle, q, a) for q, a in QUESTIONS],
        [suffix_of(bundle, "see the green ring", "here.")],
        [suffix_of(bundle, q, a) for q, a in QUESTIONS[1:]],
    ]
    return prefixes, suffixes, pixels


DECODERS = (
    DecoderConfig(width=32, temporal_layers=1, grid_position=True, cells=True),
    DecoderConfig(width=32, keys="all_frames", layers=2, cells=True),
    DecoderConfig(attention="parameter_free", keys="own_frame"),
    DecoderConfig(attention="parameter_free", keys="all_frames", temporal_layers=1),
)


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda d: f"{d.attention}-{d.keys}")
@pytest.mark.parametrize("time_layout", ["interleaved", "list"])
def test_packed_equals_separate(
    new_tiny: Callable[..., Any], tiny_config: SpaceVLLMConfig, decoder: DecoderConfig, time_layout: str
) -> None:
    bundle = new_tiny(replace(tiny_config, decoder=decoder, time_layout=time_layout))
    model = bundle.model
    prefixes, suffixes, pixels = packed_batch(bundle)
    with torch.no_grad():
        together = all_outputs(model(pack(prefixes, suffixes), torch.cat(pixels)))
    question = answer = 0
    for prefix, row, frames in zip(prefixes, suffixes, pixels, strict=True):
        n = len(prefix.query_at)
        for suffix in row:
            with torch.no_grad():
                alone = all_outputs(model(pack([prefix], [[suffix]]), frames))
            for name, value in alone.items():
                if name == "answers":
                    close(together[name][answer : answer + len(suffix.answer)], value, 1e-4)
                elif name == "presence":
                    close(together[name][question : question + 1], value, 1e-4)
                else:
                    close(together[name][question : question + 1, :n], value, 1e-4)
            question += 1
            answer += len(suffix.answer)
        # the cached path: the prefix once, then all questions of this video on it
        state = model.encode_prefix(pack([prefix], [[]]), frames)
        first = question - len(row)
        asked = model.ask(state, [[*s.question, *s.tail] for s in row], [len(s.question) for s in row])
        close(together["boxes"][first:question, :n], asked.decoder.boxes_cxcywh, 1e-4)
        close(together["activity"][first:question, :n], asked.decoder.activity_logits, 1e-4)
        close(together["quality"][first:question, :n], asked.decoder.quality_logits, 1e-4)
        close(together["presence"][first:question], asked.decoder.presence_logits, 1e-4)
    assert question == len(together["presence"]) and answer == len(together["answers"])
    # the comparison can fail: questions about one video differ in every output that the text can reach
    assert float((together["boxes"][0] - together["boxes"][1]).abs().max()) > 1e-3
    assert float((together["presence"][0] - together["presence"][1]).abs()) > 1e-3


def scalar_of(out: TrainOutput, packed: Packed) -> torch.Tensor:
    """A loss that is a sum over questions and real frames (a mean would depend on what else is packed)."""
    mask = packed.frame_mask[packed.question_row]
    weight = torch.tensor(PAINTED)
    loss = (out.decoder.boxes_cxcywh[mask] * weight).sum() + out.decoder.activity_logits[mask].sin().sum()
    loss = loss + out.decoder.presence_logits.sin().sum() + out.decoder.quality_logits[mask].cos().sum()
    if out.decoder.cell_logits is not None:
        loss = loss + out.decoder.cell_logits[mask].sigmoid().sum()
    if out.middle_logits is not None:
        loss = loss + out.middle_logits.transpose(1, 2)[mask].sigmoid().sum()
    text = torch.nn.functional.cross_entropy(out.answer_logits, packed.answer_ids, reduction="sum")
    return loss + text


def gradients(
    model: SpaceVLLM, jobs: Sequence[tuple[Packed, torch.Tensor]]
) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    for packed, pixels in jobs:
        loss = scalar_of(model(packed, pixels), packed)
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_gradients_of_a_packed_loss_are_the_sum_of_the_separate_ones(new_tiny: Callable[..., Any]) -> None:
    bundle = new_tiny()
    bundle.model.double()  # rotary angles and the decoder's outputs stay in single precision
    prefixes, suffixes, pixels = packed_batch(bundle)
    pixels = [p.double() for p in pixels]
    packed_loss, packed = gradients(bundle.model, [(pack(prefixes, suffixes), torch.cat(pixels))])
    separate_loss, separate = gradients(
        bundle.model,
        [
            (pack([prefix], [[suffix]]), frames)
            for prefix, row, frames in zip(prefixes, suffixes, pixels, strict=True)
            for suffix in row
        ],
    )
    assert packed_loss == pytest.approx(separate_loss, rel=1e-6)
    assert packed.keys() == separate.keys()
    # the features are the vision tower's last layer before its closing norm, as in the stock model
    # the clock is about frames, not questions
    unread = ("vision_tower.post_layernorm", "match.clock")
    learnt = {n for n, _ in bundle.model.named_parameters() if not any(part in n for part in unread)}
    assert packed.keys() == learnt, f"no gradient reaches {sorted(learnt - packed.keys())}"
    for name, gradient in packed.items():
        scale = float(separate[name].abs().max())
        assert float((gradient - separate[name]).abs().max()) <= 1e-5 * max(scale, 1e-2), name


def test_suffixes_do_not_see_each_other() -> None:
    """block_mask against the rule, written out."""
    segment = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, -1], [0, 0, 1, -1, -1, -1, -1, -1, -1]])
    mask = block_mask(segment)[:, 0]
    for b in range(2):
        for i in range(9):
            for j in range(9):
                asks, gives = int(segment[b, i]), int(segment[b, j])
                sees = j <= i and asks >= 0 and (gives == asks or gives == 0)
                assert bool(mask[b, i, j]) == (sees or i == j)


# --- asking --------------------------------------------------------------------------------------


def asked_twice(model: SpaceVLLM, state: Any, suffixes: list[Suffix], tokens: int, end: int) -> Any:
    return model.ask(
        state, [[*s.question, *s.tail] for s in suffixes], [len(s.question) for s in suffixes], tokens, end
    )


def test_asking_does_not_change_the_state(tiny_bundle: Any) -> None:
    model = tiny_bundle.model
    state = model.encode_prefix(pack([prefix_of(tiny_bundle, 4)], [[]]), pixels_of(4, model.image_size))
    before = [(k.clone(), v.clone()) for k, v in state.cache]
    questions = [suffix_of(tiny_bundle, q) for q, _ in QUESTIONS]
    first = asked_twice(model, state, questions, 6, tiny_bundle.layout.end[0])
    other = asked_twice(model, state, questions[::-1], 6, tiny_bundle.layout.end[0])
    second = asked_twice(model, state, questions, 6, tiny_bundle.layout.end[0])
    assert first.answers == second.answers and first.answer_logprobs == second.answer_logprobs
    assert torch.equal(first.decoder.boxes_cxcywh, second.decoder.boxes_cxcywh)
    close(other.decoder.boxes_cxcywh.flip(0), first.decoder.boxes_cxcywh, 1e-5)
    assert other.answers[::-1] == first.answers
    for (k, v), (old_k, old_v) in zip(state.cache, before, strict=True):
        assert torch.equal(k, old_k) and torch.equal(v, old_v)


@pytest.mark.parametrize("n_frames", [4, 2])
def test_packed_greedy_answers_equal_generate(
    new_tiny: Callable[..., Any], tiny_config: SpaceVLLMConfig, n_frames: int
) -> None:
    """Greedy answers of packed questions = transformers' generate on each unpacked sequence."""
    bundle, steps = new_tiny(replace(tiny_config, motion_layers=0)), 12
    model = bundle.model
    with torch.no_grad():  # with a tied head, layers that add little make every token repeat itself
        for name, parameter in model.base.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(4.0)
    prefix, pixels = prefix_of(bundle, n_frames), pixels_of(n_frames, model.image_size)
    questions = [suffix_of(bundle, q) for q, _ in QUESTIONS]
    state = model.encode_prefix(pack([prefix], [[]]), pixels)

    def generate(suffix: Suffix, end: int) -> list[int]:
        ids = torch.tensor([[*prefix.ids.tolist(), *suffix.question, *suffix.tail]])
        out = model.base.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values_videos=pixels[None],
            max_new_tokens=steps,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=0,
        )
        new: list[int] = out[0, ids.shape[1] :].tolist()
        return new[: new.index(end)] if end in new else new

    never = len(bundle.tokenizer)  # a row of the padded vocabulary that no answer ends with
    free = asked_twice(model, state, questions, steps, never).answers
    assert free == [generate(s, never) for s in questions]
    assert len({tuple(a) for a in free}) > 1, "all answers are alike: the comparison says nothing"
    # a token that ends one answer early, and others at other steps or never
    end = next(t for a in free for t in a if len({b.index(t) if t in b else steps for b in free}) > 1)
    ended = asked_twice(model, state, questions, steps, end)
    assert ended.answers == [generate(s, end) for s in questions]
    assert len({len(a) for a in ended.answers}) > 1
    assert all(logprob <= 0 for logprob in ended.answer_logprobs)


def test_answer_logprobs_are_those_of_the_tokens(tiny_bundle: Any) -> None:
    model, prefix = tiny_bundle.model, prefix_of(tiny_bundle, 3)
    pixels = pixels_of(3, model.image_size)
    suffix = suffix_of(tiny_bundle, QUESTIONS[0][0])
    state = model.encode_prefix(pack([prefix], [[]]), pixels)
    asked = asked_twice(model, state, [suffix], 5, -1)
    taught = replace(suffix, answer=tuple(asked.answers[0]))
    packed = pack([prefix], [[taught]])
    with torch.no_grad():
        logits = model(packed, pixels).answer_logits.log_softmax(-1)
    expected = logits[torch.arange(5), packed.answer_ids].mean()
    assert asked.answer_logprobs[0] == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_implementations_agree(new_tiny: Callable[..., Any], implementation: str) -> None:
    bundle = new_tiny()
    prefixes, suffixes, pixels = packed_batch(bundle)
    packed = pack(prefixes, suffixes)
    with torch.no_grad():
        reference = all_outputs(bundle.model(packed, torch.cat(pixels)))
        bundle.model.base.set_attn_implementation(implementation)
        other = all_outputs(bundle.model(packed, torch.cat(pixels)))
        state = bundle.model.encode_prefix(pack(prefixes[:1], [[]]), pixels[0])
        asked = asked_twice(bundle.model, state, suffixes[0], 0, -1)
    for name, value in reference.items():
        close(other[name], value, 1e-4)
    close(asked.decoder.boxes_cxcywh, reference["boxes"][:3], 1e-4)


def test_too_many_frames_is_an_error(tiny_bundle: Any) -> None:
    from tubelet.errors import ModelError

    with pytest.raises(ModelError, match="at most 4 frames, got 5"):
        prefix_of(tiny_bundle, 5)


# --- the full-size configuration -----------------------------------------------------------------


def seven_billion() -> LlavaOnevisionConfig:
    """llava-hf/llava-onevision-qwen2-7b-ov-hf."""
    return LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 26,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152000,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
        },
        image_token_index=151646,
        video_token_index=151647,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )


def test_seven_billion_shape() -> None:
    """The 7B model of the hub, without its memory: every count by hand."""
    config = SpaceVLLMConfig()  # the paper's: 64 frames, times in a list, answers as text
    with torch.device("meta"):
        model = SpaceVLLM(LlavaOnevisionForConditionalGeneration(seven_billion()), config)
    vision, text, vocabulary = 1152, 3584, 152000
    attention = 4 * (vision * vision + vision)
    mlp = vision * 4304 + 4304 + 4304 * vision + vision
    tower = (
        26 * (attention + mlp + 4 * vision) + (3 * 14 * 14 * vision + vision) + 27 * 27 * vision + 2 * vision
    )
    projector = vision * text + text + text * text + text
    qkvo = 2 * text * text + text + 2 * (text * 512 + 512)
    layer = qkvo + 3 * text * 18944 + 2 * text
    language = 28 * layer + text + 2 * vocabulary * text
    newline = text
    counted = sum(p.numel() for p in model.base.parameters())
    assert counted == tower + projector + newline + language
    assert counted == pytest.approx(8.03e9, rel=2e-3)

    width, d = config.decoder.width, text
    into = 3 * (d * width + width)
    cross = 2 * width + (width * width + width) + (2 * width * width + 2 * width) + (width * width + width)
    forward = 2 * width + (2 * width * width + 2 * width) + (2 * width * width + width)
    heads = (width * width + width) * 2 + (2 * width * width + width)  # box, activity, presence: first layers
    heads += (4 * width + 4) + (2 * width + 2) + (width + 1)
    decoder = into + 2 * cross + 2 * forward + 2 * width + 2 * width + heads
    assert sum(p.numel() for p in model.space_decoder.parameters()) == decoder

    assert model.tokens_per_frame == 196 and model.image_size == 384
    assert model.base.get_input_embeddings().weight.shape == (vocabulary, text)
    assert model.base.model.multi_modal_projector.linear_1.weight.shape == (text, vision)
    assert all(p.is_meta for p in model.parameters())
    assert model.state_dict()["base.lm_head.weight"].shape == (vocabulary, text)
