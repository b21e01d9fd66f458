"""Against the published code's numbers: packer blocks, positional sums, ids, text conventions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import golden_files
import pytest
import torch

from tubelet.errors import TubeletError
from tubelet.llava_st import official_text
from tubelet.llava_st.answers import parse_answer
from tubelet.llava_st.checkpoint import load_tokenizer
from tubelet.llava_st.config import PackerConfig
from tubelet.llava_st.coordinates import Variables, Worded, position_to_bins
from tubelet.llava_st.lape import GridOffsets, add_to_grid, blend, grid_offsets
from tubelet.llava_st.model import VisualCounts
from tubelet.llava_st.official_layout import our_name
from tubelet.llava_st.packer import Packer
from tubelet.llava_st.prompts import prompt_ids, split_mark, training_ids, turn_ids, visual_ids
from tubelet.llava_st.words import Words, find_words

TOLERANCE = 1e-4
IMAGE, VIDEO = VisualCounts(image=729), VisualCounts(fast=900, slow=1620)


@pytest.fixture(scope="module")
def words(golden: Path) -> tuple[Any, Words]:
    tokenizer = load_tokenizer(golden / "checkpoint")
    return tokenizer, find_words(tokenizer)


# --- packer, positional embedding --------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 7])
def test_packer_blocks(golden: Path, chunk: int | None) -> None:
    g = golden_files.tensors(golden, "packer")
    packer = Packer(48, PackerConfig(width=32, heads=4))
    prefix = "model.vision_resampler."
    packer.load_state_dict(
        {
            our_name(prefix + k).removeprefix("packer."): v
            for k, v in g.items()
            if k.startswith("token_packer")
        }
    )
    base = g["temporal_and_fast.input"].float().view(100, 9, 9, 48)
    with torch.no_grad():
        space = packer.space(g["spatial.input"].float().view(2, 27, 27, 48), chunk)
        slow, fast, single = packer.slow(base, chunk), packer.fast(base, chunk), packer.slow(base[:1], chunk)
    for ours, theirs in (
        (space, g["spatial.output"]),
        (slow, g["temporal.output"]),
        (fast, g["fast.output"]),
        (single, g["temporal_single_frame.output"]),
    ):
        torch.testing.assert_close(ours.flatten(1, 2), theirs, atol=TOLERANCE, rtol=0)


def test_positional_sums(golden: Path) -> None:
    g = golden_files.tensors(golden, "lape")
    axes = ("temporal", "spatial_height", "spatial_width")
    inputs, outputs = (
        torch.cat([g[f"{a}_{d}_embeddings.weight"] for a in axes]) for d in ("input", "output")
    )
    video = grid_offsets(inputs, outputs, (100, 27, 27))
    torch.testing.assert_close(video.height, g["resized.height"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(video.width, g["resized.width"], atol=TOLERANCE, rtol=0)
    some = GridOffsets(video.time[g["video.frames"].long()], video.height, video.width)
    image = grid_offsets(inputs, outputs, (1, 27, 27))
    for name, offsets in (("video", some), ("image", image)):
        features = g[f"{name}.projector"].float().unflatten(1, (27, 27))
        ours = add_to_grid(features, offsets).flatten(1, 2)
        torch.testing.assert_close(ours, g[f"{name}.sum"], atol=TOLERANCE, rtol=0)


def test_positions_to_bins(golden: Path) -> None:
    for case in golden_files.cases(golden, "position_to_bins"):
        position, bins = case["input"]["position"], case["input"]["bins"]
        position = math.nan if position == "NaN" else position
        if "error" in case:
            with pytest.raises(TubeletError):
                position_to_bins(position, bins)
        else:
            want = case["output"]
            assert position_to_bins(position, bins) == (want["floor"], want["ceil"], want["ratio"])


def test_positions_to_rows(golden: Path) -> None:
    k = torch.arange(100, dtype=torch.float64)
    table = torch.stack([k, k * k], dim=1)
    for case in golden_files.cases(golden, "position_to_row"):
        row = blend(table, torch.tensor([case["input"]["position"]], dtype=torch.float64))[0]
        torch.testing.assert_close(row, torch.tensor(case["output"], dtype=torch.float64), atol=1e-9, rtol=0)


# --- text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "function"),
    [
        ("box_in_text", official_text.boxes_to_tags),
        ("span_in_text", official_text.spans_to_tags),
        ("float_in_text", official_text.starts_to_tags),
    ],
)
def test_numbers_to_tags(golden: Path, group: str, function: Any) -> None:
    for case in golden_files.cases(golden, group):
        if case["input"]["text"] is not None:
            assert function(case["input"]["text"], case["input"]["in_out"]) == case["output"]


def test_benchmark_prompts(golden: Path) -> None:
    for case in golden_files.cases(golden, "benchmark_prompt"):
        direction = "INPUT" if case["input"]["from"] == "human" else "OUTPUT"
        ours = official_text.benchmark_prompt(case["input"]["text"], direction)
        assert ours.text == case["output"]["text"]
        assert ours.variables.to_dict() == case["output"]["variables"]


def test_demo_notation(golden: Path) -> None:
    for case in golden_files.cases(golden, "demo_notation"):
        ours = official_text.demo_prompt(case["input"]["text"])
        assert (ours.text, ours.variables.to_dict()) == (case["output"]["text"], case["output"]["variables"])
    for case in golden_files.cases(golden, "demo_notation_to_text"):
        assert official_text.demo_to_numbers(case["input"]["text"]) == case["output"]


EVALUATED = ("<TEMP-INPUT1/4>", "<WIDTH-INPUT(0.1)>")  # the published code runs these as Python


def test_variables(golden: Path) -> None:
    errors = 0
    for case in golden_files.cases(golden, "variables"):
        texts = [turn["value"] for turn in case["input"]["turns"]]
        if "error" in case or (texts and texts[0] in EVALUATED):
            errors += 1
            with pytest.raises(TubeletError, match="one plain number"):
                official_text.tags_to_variables(texts)
            continue
        values, variables = official_text.tags_to_variables(texts)
        assert values == case["output"]["values"]
        assert variables == Variables.from_dict(case["output"]["variables"])
    assert errors == 5


def test_anchor_numbers(golden: Path) -> None:
    for case in golden_files.cases(golden, "token_to_text"):
        assert official_text.anchor_to_number(case["input"]["token"]) == case["output"]


def _timed(found: dict[float, list[float]]) -> dict[str, list[float]]:
    return {str(time): box for time, box in found.items()}


def test_answers_and_strict_parsers(golden: Path) -> None:
    for case in golden_files.cases(golden, "answers"):
        answer = case["input"]["answer"]
        normalised = official_text.answer_to_numbers(answer)
        indices = official_text.answer_to_numbers(answer, as_indices=True)
        assert (normalised, indices) == (case["normalised"], case["token_mode"])
        assert list(official_text.strict_span(normalised) or [0, 0]) == case["span_of_normalised"]["output"]
        assert official_text.strict_box(normalised) == case["box_of_normalised"]["output"]
        assert (
            _timed(official_text.strict_timed_boxes(indices)) == case["timed_boxes_of_token_mode"]["output"]
        )
        assert (
            _timed(official_text.strict_timed_boxes(normalised))
            == case["timed_boxes_of_normalised"]["output"]
        )
        assert (official_text.strict_end(normalised) or 0) == case["ends_in_of_normalised"]["output"]


@pytest.mark.parametrize(
    ("group", "function"),
    [
        ("parse_span", lambda text: list(official_text.strict_span(text) or [0, 0])),
        ("parse_box", official_text.strict_box),
        ("parse_timed_boxes", lambda text: _timed(official_text.strict_timed_boxes(text))),
        ("parse_ends_in", lambda text: official_text.strict_end(text) or 0),
    ],
)
def test_strict_parsers(golden: Path, group: str, function: Any) -> None:
    for case in golden_files.cases(golden, group):
        assert function(case["input"]["text"]) == case["output"], case


def test_tolerant_parser_reads_what_the_demo_reads(golden: Path) -> None:
    """Its event list is better: the published one drops everything before the last comma of a sentence."""
    for case in golden_files.cases(golden, "demo_results"):
        task, text, want = case["input"]["task"].lower(), case["input"]["text"], case.get("output")
        answer = parse_answer(text)
        if "error" in case:
            continue
        if task in ("rec", "reg"):
            assert list(answer.boxes[0]) == want
        elif task in ("tvg", "tr"):
            assert list(answer.spans[0] if answer.spans else (0, 0)) == want
        elif task in ("stvg", "svg", "elc"):
            assert {str(time): list(box) for time, box in answer.timed_boxes} == want
        elif task == "dgc":
            assert [list(box) for box in answer.boxes] == want
        elif want and len(want) == 2:
            assert [list(event.span) for event in answer.events] == [item["timestamp"] for item in want]
            assert [event.text for event in answer.events] == ["a man sits", "he stands, then leaves"]


def test_frame_indices(golden: Path) -> None:
    inverted = 0
    for case in golden_files.cases(golden, "frame_indices"):
        given = case["input"]
        split, count = given["split"], given["count"]
        backwards = split is not None and split[1] < split[0]
        inverted += backwards
        if backwards or ("error" in case and count > 1):
            with pytest.raises(TubeletError, match="split"):
                official_text.frame_indices(given["n_frames"], split, count)
        elif count > 1:
            assert official_text.frame_indices(given["n_frames"], split, count) == case["output"]
    assert inverted == 2


# --- ids ---------------------------------------------------------------------------------------------


def test_token_ids(golden: Path, words: tuple[Any, Words]) -> None:
    import json

    wanted = json.loads((golden / "geometry.json").read_text())["token_ids"]
    tokenizer, found = words
    assert {word: tokenizer.convert_tokens_to_ids(word) for word in wanted} == wanted
    assert (found.vocabulary, found.newline, found.turn_end) == (285, 198, wanted["<|im_end|>"])
    assert found.placeholders["WIDTH", "INPUT"] == wanted["<WIDTH-INPUT>"]


def _expanded(ids: list[list[int]]) -> list[int]:
    return [token for token, count in ids for _ in range(count)]


def test_visual_places(golden: Path, words: tuple[Any, Words]) -> None:
    """The mark goes to the front of the question; several marks in one prompt are an error."""
    tokenizer, found = words
    refused = 0
    for group in ("visual_placeholder_inference", "visual_placeholder_training"):
        for case in golden_files.cases(golden, group):
            text, want = case["input"]["text"], case["output"]
            if text.count("<image>") + text.count("<video>") > 1:
                refused += 1
                with pytest.raises(TubeletError, match="one image or one video"):
                    split_mark(text)
                continue
            mark, question = split_mark(text)
            if mark is None:
                assert want in (text, None)
                continue
            picture = tokenizer.decode(visual_ids(found, IMAGE if mark == "<image>" else VIDEO))
            for patch, count in (("<im_patch>", 727), ("<vid_patch>", 898), ("<vid_patch>", 1618)):
                picture = picture.replace(patch * count, f"{{{patch} x {count}}}", 1)
            assert f"{picture}\n{question}" == want
    assert refused == 6


def test_prompt_ids(golden: Path, words: tuple[Any, Words]) -> None:
    """As published, except that in a user's text only coordinate words are more than letters."""
    tokenizer, found = words
    compared = 0
    for case in golden_files.cases(golden, "prompt_ids_inference"):
        text, want = case["input"]["text"], _expanded(case["output"])
        if text.startswith("<im_start>") or "<image>" in text or "<|im_end|>" in text:
            ids = prompt_ids(tokenizer, found, text).ids
            assert list(ids) != want
            assert found.image.start not in ids and ids.count(found.turn_end) == 2
            continue
        variables = Variables(temporal_input_locations=(0.5,)) if "INPUT" in text else Variables()
        assert list(prompt_ids(tokenizer, found, Worded(text, variables)).ids) == want
        compared += 1
    assert compared == 6


def test_training_ids(golden: Path, words: tuple[Any, Words]) -> None:
    tokenizer, found = words
    for case in golden_files.cases(golden, "training_ids"):
        turns = []
        for turn in case["input"]["turns"]:
            counts = [turn["value"].count(f"<{a}-OUTPUT>") for a in ("TEMP", "HEIGHT", "WIDTH")]
            t, h, w = ((0.5,) * n for n in counts)
            turns.append((turn["from"], Worded(turn["value"], Variables((), t, (), h, (), w))))
        ours = training_ids(tokenizer, found, turns)
        assert list(ours.ids) == case["output"]["input_ids"]
        assert list(ours.labels) == case["output"]["labels"]


def test_turns_are_what_the_tokenizer_s_template_gives(words: tuple[Any, Words]) -> None:
    tokenizer, found = words
    message = [{"role": "system", "content": "be kind"}]
    text = tokenizer.apply_chat_template(message, tokenize=False)
    ours = turn_ids(tokenizer, found, "system", tokenizer("be kind", add_special_tokens=False)["input_ids"])
    assert ours == tokenizer(text, add_special_tokens=False)["input_ids"]
