"""The arithmetic of the published code, case by case; where it raised, a query must not be lost."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tubelet.frames import FrameGrid
from tubelet.mllm.parts import VisualGrid
from tubelet.proposals import Track, Tracks
from tubelet.proposals.rle import box_of, encode
from tubelet.zeroshot.intervals import interval
from tubelet.zeroshot.maps import assemble, epsilon_for, layer_range, relative
from tubelet.zeroshot.reattention import objective, tune
from tubelet.zeroshot.regions import scores_per_frame, track_weights
from tubelet.zeroshot.scoring import bilinear_weights, pixel_frame_scores, track_scores
from tubelet.zeroshot.settings import PRESETS, ZeroShotSettings

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "zeroshot"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no golden files beside this checkout")


def cases(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
    return found


def masks_of(given: dict[str, Any]) -> np.ndarray:
    """Run lengths, column by column -> (P, T, H, W)."""
    height, width = given["mask_size"]
    out = np.zeros((len(given["masks"]), given["n_frames"], height, width), dtype=bool)
    for p, track in enumerate(given["masks"]):
        for t, runs in enumerate(track):
            flat = np.zeros(height * width, dtype=bool)
            at = 0
            for number, length in enumerate(runs):
                flat[at : at + length] = number % 2 == 1
                at += length
            out[p, t] = flat.reshape(width, height).T
    return out


def map_of(given: dict[str, Any], key: str = "map") -> np.ndarray:
    return np.array(given[key], dtype=np.float64).reshape(given["n_frames"], *given["grid"])


def tracks_of(masks: np.ndarray) -> Tracks:
    """Masks (P, T, H, W) as proposals: what a provider of masks would have handed over."""
    n_frames, height, width = masks.shape[1:]
    index = np.arange(n_frames)
    grid = FrameGrid(index, index / 2, Fraction(2), n_frames / 2, width, height)
    made = []
    for number, track in enumerate(masks):
        boxes = [box_of(mask) for mask in track]
        seen = np.array([box is not None for box in boxes])
        shown = np.stack([np.zeros(4) if box is None else box for box in boxes])
        made.append(Track(number, shown, seen, masks=tuple(encode(mask) for mask in track)))
    return Tracks(grid, tuple(made))


@pytest.mark.parametrize("name", ["track_scores", "interval"])
def test_the_preset_makes_the_published_choice_of_tracks_with_masks(name: str) -> None:
    """From run-length masks through `track_weights` and the preset to the winner, and to its first and last frame."""
    published, seen = PRESETS["published"], 0
    for case in cases(name):
        given, wanted = case["input"], case["output"]
        if "error" in wanted and not given["masks"]:
            empty = track_weights(
                Tracks(tracks_of(np.ones((1, 2, 4, 4), dtype=bool)).grid), (4, 4), published
            )
            assert empty.shape == (0, 2, 4, 4)
            continue
        tracks, rel = tracks_of(masks_of(given)), map_of(given)
        weights = track_weights(tracks, tuple(given["grid"]), published)
        if name == "track_scores":
            scores = track_scores(rel, weights)
            np.testing.assert_allclose(
                scores, wanted["scores"], rtol=1e-4, atol=1e-6, err_msg=str(case["id"])
            )
            assert int(scores.argmax()) == wanted["winner"], case["id"]
        elif "error" not in wanted:
            row = scores_per_frame(rel, tracks, wanted["track"], weights, published)
            told = wanted["windows"][str(published.k)]
            first, last = interval(row, published.interval, published.k)
            assert (first, last) == (told["first"], told["last"]), case["id"]
            assert [given["frame_ids"][first], given["frame_ids"][last]] == told["sted"]
            assert last - first + 1 == told["n_frames"]
        else:
            continue
        seen += 1
    assert seen >= 50


def test_track_scores() -> None:
    seen = 0
    for case in cases("track_scores"):
        given, wanted = case["input"], case["output"]
        masks, rel = masks_of(given), map_of(given)
        weights = bilinear_weights(masks, tuple(given["grid"]))
        scores = track_scores(rel, weights)
        if "error" in wanted:  # no track: nothing to choose, and nothing raised
            assert case["kind"] == "zero_tracks" and len(scores) == 0
            continue
        np.testing.assert_allclose(scores, wanted["scores"], rtol=1e-4, atol=1e-6, err_msg=str(case["id"]))
        np.testing.assert_allclose(weights.sum((-2, -1)), wanted["weight_sum"], atol=2e-3)
        assert int(scores.argmax()) == wanted["winner"], case["id"]
        seen += 1
    assert seen >= 50


def test_intervals() -> None:
    k_values = (5, 7, 10)
    seen = 0
    for case in cases("interval"):
        given, wanted = case["input"], case["output"]
        masks, rel = masks_of(given), map_of(given)
        if not len(masks):
            assert "error" in wanted
            continue
        scores = pixel_frame_scores(rel, masks)
        if "error" in wanted:  # one track or one frame: there is an answer, and it lies in the clip
            first, last = interval(scores[given["track"] or 0], "window", 7)
            assert 0 <= first <= last < given["n_frames"]
            other = case.get("with_empty_second_track") or wanted.get("with_empty_second_track")
            if other:
                assert [first, last] == [other["windows"]["7"]["first"], other["windows"]["7"]["last"]]
            continue
        np.testing.assert_allclose(
            scores, wanted["frame_scores"], rtol=1e-4, atol=1e-5, err_msg=str(case["id"])
        )
        track = given["track"]
        track = int(scores.max(1).argmax()) if track is None else track
        assert track == wanted["track"] and int(scores[track].argmax()) == wanted["best_frame"]
        row = np.array(wanted["frame_scores"][track])
        for k in k_values:
            told = wanted["windows"][str(k)]
            assert interval(row, "window", k) == (told["first"], told["last"]), (case["id"], k)
        seen += 1
    assert seen >= 60


def test_relative_maps() -> None:
    tensors = load_file(GOLDEN / "relative_map.safetensors")
    seen = 0
    for case in cases("relative_map"):
        given, name = case["input"], f"{case['id']:02d}"
        tolerance = 1e-5 if given["dtype"] == "float32" else 2e-2
        shape = (given["n_frames"], given["grid"][0] * given["grid"][1])
        assert epsilon_for(PRESETS["published"], shape[0] * shape[1]) == given["epsilon"]
        rows = []
        for part, text in (
            ("numerator", "text_tokens_numerator"),
            ("denominator", "text_tokens_denominator"),
        ):
            if given["form"] == "rows":
                picked = tensors[f"{name}.{part}"].double()[:, :, given["token_index"]]
            else:
                full = tensors[f"{name}.attention_{part}"].double()
                start, n = given["prefix_tokens"], shape[0] * shape[1]
                assert full.shape[-1] == start + n + given["newline_token"] + given[text]
                picked = full[:, :, given["token_index"], start : start + n]
            rows.append(picked.reshape(*picked.shape[:2], *shape).numpy())
        for which, layers in (("head", PRESETS["published"].layers), ("all", None)):
            wanted = tensors[f"{name}.relative_{which}"].double().numpy()
            if np.isnan(wanted).all():  # a model of few layers: nothing is left of the published range
                with pytest.raises(Exception, match="are none"):
                    layer_range(layers, given["layers"])
                continue
            chosen = layer_range(layers, given["layers"])
            if chosen is not None:
                assert [chosen[0], chosen[-1]] == given["layers_used_head"]
            maps = [r.mean((0, 1)) if chosen is None else r[list(chosen)].mean((0, 1)) for r in rows]
            ours = relative(*maps, given["epsilon"])
            np.testing.assert_allclose(ours, wanted, rtol=tolerance, err_msg=f"{name} {which}")
            seen += 1
    assert seen >= 25


def test_reversal() -> None:
    moved = 0
    for case in cases("reversal"):
        given, wanted = case["input"], case["output"]
        n_frames, (height, width) = given["n_frames"], given["grid"]
        frames = np.arange(n_frames)[:, None]
        grid = VisualGrid(
            n_frames, height, width, frames, frames[:, 0] / 2, 0.5, trailing=int(given["newline_token"])
        )
        tokens = torch.tensor(given["tokens"], dtype=torch.float64)
        assert len(tokens) == grid.n_tokens
        flipped = grid.flip(tokens)
        assert torch.equal(flipped, torch.tensor(wanted["tokens_reversed"], dtype=torch.float64)), case["id"]
        assert torch.equal(grid.flip(flipped), tokens)
        moved += not torch.equal(flipped, tokens)
        ours = assemble(map_of(given, "map_forward"), map_of(given, "map_reversed"))
        np.testing.assert_allclose(
            ours.reshape(len(ours), -1),
            np.array(wanted["assembled"]).reshape(len(ours), -1),
            rtol=1e-6,
            atol=1e-6,
        )
    assert moved >= 10


def test_updates_of_the_visual_prompt() -> None:
    """Both objectives on the stand-in model, after one, two and three epochs."""
    tensors = load_file(GOLDEN / "lra_updates.safetensors")
    for case in cases("lra_updates"):
        given, name = case["input"], f"{case['id']:02d}"
        part = {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{name}.")}

        def gaps_of(prompt: torch.Tensor, part: Any = part, given: Any = given) -> torch.Tensor:
            pooled = torch.einsum(
                "qn,nd->qd", part["pool"].reshape(given["n_questions"], -1), part["tokens"] + prompt
            )
            logits = torch.tanh(pooled @ part["W1"].T + part["c"]) @ part["W2"].T
            return logits[:, given["yes_id"]] - logits[:, given["no_id"]]

        start = torch.zeros_like(part["tokens"])
        for epoch, (gaps, loss) in enumerate(
            zip(case["output"]["gaps"], case["output"]["loss"], strict=True)
        ):
            prompt = (start if epoch == 0 else part[f"U_after_{epoch}"]).clone().requires_grad_()
            found = gaps_of(prompt)
            assert found.tolist() == pytest.approx(gaps, abs=1e-10)
            assert float(objective(found.detach(), "published")) == pytest.approx(loss, abs=1e-10)
            (gradient,) = torch.autograd.grad(objective(found, "published"), prompt)
            torch.testing.assert_close(gradient, part[f"gradient_{epoch}"], atol=1e-10, rtol=1e-9)
        if case["kind"].startswith("default"):
            assert (given["lr"], given["beta"]) == (PRESETS["published"].rate, PRESETS["published"].averaging)
        for epochs in (1, 2, 3):
            settings = ZeroShotSettings(rate=given["lr"], averaging=given["beta"], epochs=epochs)
            ours = tune(gaps_of, start, settings)
            torch.testing.assert_close(ours, part[f"U_after_{epochs}"], atol=1e-9, rtol=1e-9)
            paper = ZeroShotSettings(rate=given["lr"], averaging=1.0, epochs=epochs, loss="paper")
            before = start if epochs == 1 else part[f"paper_V_after_{epochs - 1}"]
            two = gaps_of(before)[:2]
            assert float(two[1]) == pytest.approx(case["output"]["paper_gap"][epochs - 1], abs=1e-9)
            assert float(objective(two, "paper")) == pytest.approx(
                case["output"]["paper_loss"][epochs - 1], abs=1e-9
            )
            first_two = tune(lambda prompt: gaps_of(prompt)[:2], start, paper)
            torch.testing.assert_close(first_two, part[f"paper_V_after_{epochs}"], atol=1e-8, rtol=1e-7)
