"""The query-guided space decoder alone: every option, padding, the text's influence, its cells."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.errors import ModelError
from tubelet.motion import MotionLayer
from tubelet.spacevllm.config import DecoderConfig
from tubelet.spacevllm.decoder import DecoderOutput, SpaceDecoder, cxcywh_to_xyxy, grid_sinusoid, sinusoid
from tubelet.spacevllm.loss import cell_targets

HIDDEN = 24
OPTIONS = [
    DecoderConfig(
        attention=attention,
        keys=keys,
        width=16,
        heads=2,
        layers=layers,
        motion_layers=motion,
        temporal_layers=temporal,
        grid_position=grid,
        cells=cells,
    )
    for attention, keys, layers, motion, temporal, grid, cells in itertools.product(
        ("projected", "parameter_free"),
        ("own_frame", "all_frames"),
        (1, 2),
        (0, 1),
        (0, 1),
        (False, True),
        (False, True),
    )
    if attention == "projected" or (layers == 1 and not cells and not motion)  # these belong to "projected"
]


def name_of(config: DecoderConfig) -> str:
    return "-".join(str(v) for v in asdict(config).values())


def inputs(
    n: int = 2, n_frames: int = 3, n_visual: int = 9, n_text: int = 4, seed: int = 0
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "query": torch.randn(n, n_frames, HIDDEN, generator=generator),
        "visual": torch.randn(n, n_frames, n_visual, HIDDEN, generator=generator),
        "text": torch.randn(n, n_text, HIDDEN, generator=generator),
        "frame_mask": torch.ones(n, n_frames, dtype=torch.bool),
        "text_mask": torch.ones(n, n_text, dtype=torch.bool),
    }


def made(config: DecoderConfig, seed: int = 0) -> SpaceDecoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SpaceDecoder(HIDDEN, config, n_visual=9).eval()


def answer(decoder: SpaceDecoder, given_: dict[str, torch.Tensor]) -> DecoderOutput:
    rest = {name: value for name, value in given_.items() if name != "visual"}
    output: DecoderOutput = decoder(looked=decoder.look(given_["visual"], given_["frame_mask"]), **rest)
    return output


def tensors(out: DecoderOutput) -> dict[str, torch.Tensor]:
    found = {
        "boxes": out.boxes_cxcywh,
        "activity": out.activity_logits,
        "presence": out.presence_logits,
        "quality": out.quality_logits,
    }
    return found if out.cell_logits is None else {**found, "cells": out.cell_logits}


@pytest.mark.parametrize("config", OPTIONS, ids=name_of)
@torch.no_grad()
def test_every_option(config: DecoderConfig) -> None:
    """Shapes, ranges; padding is without influence; text and own frame have influence."""
    decoder, given_ = made(config), inputs()
    out = answer(decoder, given_)
    assert out.boxes_cxcywh.shape == (2, 3, 4) and out.boxes_xyxy.shape == (2, 3, 4)
    assert out.activity_logits.shape == out.quality_logits.shape == (2, 3)
    assert out.presence_logits.shape == (2,)
    assert (out.cell_logits is not None) == config.cells
    if out.cell_logits is not None:
        assert out.cell_logits.shape == (2, 3, 9)
    assert float(out.boxes_cxcywh.min()) >= 0 and float(out.boxes_cxcywh.max()) <= 1
    assert all(bool(value.isfinite().all()) for value in tensors(out).values())

    # padding: two more frames and three more words of noise, masked, change no real number
    padded = inputs(2, 5, 9, 7, seed=9)
    for name in ("query", "visual"):
        padded[name][:, :3] = given_[name]
    padded["text"][:, :4] = given_["text"]
    padded["frame_mask"][:, 3:] = False
    padded["text_mask"][:, 4:] = False
    with_padding = answer(decoder, padded)
    for name, value in tensors(out).items():
        other = tensors(with_padding)[name]
        other = other if name == "presence" else other[:, :3]
        assert float((other - value).abs().max()) < 1e-5, name
    unmasked = answer(decoder, {**padded, "text_mask": torch.ones(2, 7, dtype=torch.bool)})
    assert float((unmasked.boxes_cxcywh[:, :3] - out.boxes_cxcywh).abs().max()) > 1e-4

    # the text matters, in every output
    for name, value in tensors(answer(decoder, {**given_, "text": inputs(seed=5)["text"]})).items():
        assert float((value - tensors(out)[name]).abs().max()) > 1e-4, name

    # a change in frame 2: own_frame without temporal layers leaves the others alone (a motion layer: all but its
    # neighbour), all else lets it through
    changed = {**given_, "visual": given_["visual"].clone()}
    changed["visual"][:, 2] += 1.5 * torch.randn(2, 9, HIDDEN, generator=torch.Generator().manual_seed(3))
    moved = (answer(decoder, changed).boxes_cxcywh - out.boxes_cxcywh).abs().amax((0, 2))
    assert float(moved[2]) > 1e-4
    if config.keys == "own_frame" and not config.temporal_layers:
        assert float(moved[0]) < 1e-6
        assert (float(moved[1]) > 1e-6) == bool(config.motion_layers)
    else:
        assert float(moved[:2].min()) > 1e-6


@torch.no_grad()
def test_questions_of_one_call_are_independent() -> None:
    for config in OPTIONS[::5]:
        decoder, both = made(config), inputs(3)
        together = tensors(answer(decoder, both))
        for q in range(3):
            alone = tensors(answer(decoder, {name: value[q : q + 1] for name, value in both.items()}))
            for name, value in alone.items():
                assert float((together[name][q : q + 1] - value).abs().max()) < 1e-5


@torch.no_grad()
def test_questions_share_the_look_at_their_video() -> None:
    for config in OPTIONS[::5]:
        decoder, two = made(config), inputs(2)
        texts = inputs(5, seed=3)
        row = torch.tensor([0, 1, 1, 0, 1])
        shared = {**two, "text": texts["text"], "text_mask": texts["text_mask"], "row": row}
        repeated = {**texts, "query": two["query"][row], "visual": two["visual"][row]}
        for name, value in tensors(answer(decoder, shared)).items():
            assert torch.allclose(value, tensors(answer(decoder, repeated))[name], atol=1e-5), name


# --- motion --------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_motion_layer_finds_a_token_that_moved() -> None:
    """With untrained projections: what is alike is matched, so a moved token reads its own difference of 0."""
    torch.manual_seed(0)
    layer = MotionLayer(16, 2, 3)
    layer.sharpness.fill_(60.0)
    frames = torch.randn(1, 2, 9, 16)
    frames[0, 1] = frames[0, 0].roll(1, dims=0)  # every token is one cell further
    normed = layer.norm(frames)
    match = torch.nn.functional.normalize(layer._split(layer.match(normed)), dim=-1)
    weights = (60 * match[:, 1] @ match[:, 0].transpose(-1, -2) + layer._bias(0)).softmax(-1)
    assert torch.equal(weights.argmax(-1)[0, 0], torch.arange(9).roll(1))


@torch.no_grad()
def test_motion_layers_read_neighbours_only_and_no_padding() -> None:
    torch.manual_seed(0)
    layer = MotionLayer(16, 2, 3)
    x, mask = torch.randn(2, 6, 9, 16), torch.ones(2, 6, dtype=torch.bool)
    out = layer(x, mask)
    for changed in range(6):
        other = x.clone()
        other[:, changed] = torch.randn(2, 9, 16)
        moved = (layer(other, mask) - out).abs().amax((0, 2, 3)) > 1e-6
        assert moved.tolist() == [abs(t - changed) <= 1 for t in range(6)]
    short = mask.clone()
    short[0, 4:] = False
    padded = x.clone()
    padded[0, 4:] = 7.0
    assert torch.allclose(layer(padded, short)[0, :4], layer(x[:1, :4], mask[:1, :4])[0], atol=1e-5)
    single = layer(x[:, :1], mask[:, :1])
    assert bool(single.isfinite().all())


def test_motion_layers_need_a_square_grid() -> None:
    with pytest.raises(ModelError, match="square grid"):
        SpaceDecoder(HIDDEN, DecoderConfig(width=16, heads=2, motion_layers=1), n_visual=8)
    decoder = made(DecoderConfig(width=16, heads=2, motion_layers=1))
    with pytest.raises(ModelError, match="3 x 3"):
        decoder.look(torch.zeros(1, 2, 16, HIDDEN), torch.ones(1, 2, dtype=torch.bool))


def test_parameter_free_has_no_attention_parameters() -> None:
    free = made(DecoderConfig(attention="parameter_free"))
    names = [name for name, _ in free.named_parameters()]
    assert {name.split(".")[0] for name in names} == {
        "frame_norm",
        "box_head",
        "activity_head",
        "presence_head",
    }
    assert not any("to_q" in name or "to_kv" in name or "_in." in name for name in names)
    projected = {name for name, _ in made(DecoderConfig()).named_parameters()}
    assert any("to_q" in name for name in projected) and "query_in.weight" in projected


def test_parameter_free_is_plain_attention() -> None:
    """Both cross-attentions written out with softmax, before the heads."""
    given_ = inputs(1, 2, 4, 3)
    decoder = made(DecoderConfig(attention="parameter_free"))
    got = decoder._parameter_free(*given_.values())

    def standard(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    q, v, t = (standard(given_[name][0]) for name in ("query", "visual", "text"))
    scale = 1 / math.sqrt(HIDDEN)
    v = v + torch.softmax(v @ t.T * scale, -1) @ t
    for frame in range(2):
        read = torch.softmax(q[frame] @ v[frame].T * scale, -1) @ v[frame]
        assert torch.allclose(got[0, frame], q[frame] + read, atol=1e-5)


@torch.no_grad()
def test_cell_logits_steer_the_query() -> None:
    """Cross-attention 2 looks where the cells say that the target is."""
    config = DecoderConfig(width=16, heads=2, cells=True)
    decoder, given_ = made(config), inputs()
    before = answer(decoder, given_)
    decoder.layers[0].cells.bias.fill_(50.0)  # a constant changes no attention weight
    shifted = answer(decoder, given_)
    assert torch.allclose(before.boxes_cxcywh, shifted.boxes_cxcywh, atol=1e-4)
    decoder.layers[0].cells.visual.weight.mul_(30.0)
    steered = answer(decoder, given_)
    assert float((steered.boxes_cxcywh - before.boxes_cxcywh).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "settings_",
    [
        {"attention": "none"},
        {"keys": "some"},
        {"width": 10, "heads": 4},
        {"heads": 0},
        {"motion_layers": -1},
        {"motion_layers": 1, "attention": "parameter_free"},
    ],
)
def test_settings_are_checked(settings_: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=r"decoder\."):
        replace(DecoderConfig(), **settings_)


def test_temporal_heads_must_divide_the_width() -> None:
    with pytest.raises(ModelError, match="here 24"):
        made(DecoderConfig(attention="parameter_free", temporal_layers=1, heads=16))


# --- boxes, positions, cells ---------------------------------------------------------------------


def test_cxcywh_to_xyxy() -> None:
    box = torch.tensor([[0.5, 0.4, 0.2, 0.6]])
    assert torch.allclose(cxcywh_to_xyxy(box), torch.tensor([[0.4, 0.1, 0.6, 0.7]]))


def test_positions_tell_cells_apart() -> None:
    for n, width in ((9, 16), (196, 128), (64, 24)):
        code = grid_sinusoid(n, width, torch.device("cpu"))
        assert code.shape == (n, width)
        apart = (code[:, None] - code[None]).norm(dim=-1) + 10 * torch.eye(n)
        assert float(apart.min()) > 1e-2
        side = math.isqrt(n)
        rows = code[:, : width // 2].view(
            side, side, -1
        )  # the first half tells the row, the second the column
        assert torch.equal(rows[:, 0], rows[:, -1])
    assert sinusoid(torch.arange(3), 7).shape == (3, 7)


coordinate = st.floats(0, 1, allow_nan=False, width=32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), min_size=1, max_size=4),
    st.integers(1, 6),
)
def test_cell_targets_against_brute_force(corners: list[tuple[float, ...]], side: int) -> None:
    """Each cell's overlap with a box, one by one, over the smaller of the two areas."""
    boxes = np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners])
    sizes = boxes[:, 2:] - boxes[:, :2]
    keep = (sizes > 1e-2).all(1)  # rounding swamps slivers
    boxes, sizes = boxes[keep], sizes[keep]
    as_centres = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, sizes], axis=1)
    got = cell_targets(torch.from_numpy(as_centres), side * side).numpy()
    assert got.shape == (len(boxes), side * side)
    for n, (x0, y0, x1, y1) in enumerate(boxes):
        for k in range(side * side):
            row, column = divmod(k, side)
            wide = max(0.0, min(x1, (column + 1) / side) - max(x0, column / side))
            high = max(0.0, min(y1, (row + 1) / side) - max(y0, row / side))
            smaller = min((x1 - x0) * (y1 - y0), 1 / side**2)
            assert got[n, k] == pytest.approx(min(1.0, wide * high / smaller), abs=1e-5)


def test_cell_targets_of_the_whole_picture_and_of_nothing() -> None:
    assert torch.allclose(cell_targets(torch.tensor([[0.5, 0.5, 1.0, 1.0]]), 16), torch.ones(1, 16))
    assert float(cell_targets(torch.tensor([[0.5, 0.5, 0.0, 0.0]]), 16).max()) == 0.0
    assert cell_targets(torch.zeros(0, 4), 16).shape == (0, 16)
