"""Published frame sampling and role tokens, case by case."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tubelet.errors import DataError
from tubelet.mllm.layout import PromptWriter, VisualText, sequential_positions
from tubelet.mllm.parts import VisualGrid
from tubelet.zeroshot.sampling import hcstvg_frames, hcstvg_is_blank, positions, vidstg_frames

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "zeroshot"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no golden files beside this checkout")


def cases(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
    return found


@needs_golden
def test_sampling() -> None:
    seen: dict[str, int] = {}
    for case in cases("sampling"):
        given, wanted, kind = case["input"], case["output"], case["kind"]
        seen[kind] = seen.get(kind, 0) + 1
        if kind == "positions":
            for count, expected in wanted["positions"].items():
                assert positions(given["n_proposal_frames"], int(count)).tolist() == expected
        elif kind == "hcstvg_video_duration":
            assert hcstvg_is_blank(given["duration_s"]) == bool(wanted.get("replaced_by_constant_frames"))
        elif kind == "vidstg":
            at, frames, rows = vidstg_frames(
                given["proposal_frames"], given["used_frame_mask"], given["n_frames"]
            )
            assert at.tolist() == wanted["positions"] and frames.tolist() == wanted["decoded_frames"]
            assert rows.tolist() == wanted["proposal_rows"]
        else:
            ours = hcstvg_frames(given["sample_frames"], given["n_units"], given["n_frames"])
            assert ours.positions.tolist() == wanted["positions"]
            if "error" in wanted:  # published: the query is lost; here the last unit stands in
                assert ours.n_behind > 0 and ours.units.max() == given["n_units"] - 1
                continue
            assert ours.units.tolist() == wanted["units"] and ours.n_behind == 0
            assert ours.frames.tolist() == wanted["decoded_frames"]
    assert sum(seen.values()) == 141 and len(seen) == 9


class Pieces:
    """A tokenizer that knows some pieces, and single characters."""

    bos_token, all_special_tokens = None, ()

    def __init__(self, pieces: list[str]) -> None:
        self.added_tokens_decoder: dict[int, Any] = {}
        self.known = ["<video>", *sorted(set(pieces), key=len, reverse=True)]
        self.split = re.compile("|".join(re.escape(piece) for piece in self.known) + "|.", re.DOTALL)

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [self.convert_tokens_to_ids(piece) for piece in self.split.findall(text)]}

    def convert_tokens_to_ids(self, piece: str) -> int:
        return self.known.index(piece) if piece in self.known else len(self.known) + ord(piece)

    def decode(self, at: int) -> str:
        return self.known[at] if at < len(self.known) else chr(at - len(self.known))


class Template:
    """A processor with one of the published templates, its video written as one placeholder."""

    chat_template = "there is one"

    def __init__(self, template: str, pieces: list[str]) -> None:
        plain = re.sub(r"(?:Frame\d+: )?<(?:image|video|\|video_pad\|)>\n?", "", template)
        self.template = plain.replace("{question}", "<video>\n{question}")
        self.tokenizer = Pieces(pieces)

    def apply_chat_template(self, turns: Any, add_generation_prompt: bool, tokenize: bool) -> str:
        return self.template.replace("{question}", turns[0]["content"][1]["text"])


@needs_golden
def test_role_tokens_of_published_templates_are_found() -> None:
    """Through `PromptWriter.lay_out`: the role tokens, the token before them, and where the scripts' index points."""
    grid = VisualGrid(1, 2, 2, np.zeros((1, 1), dtype=np.int64), np.zeros(1), 1.0)
    seen = 0
    for case in cases("role_suffix"):
        given, wanted = case["input"], case["output"]
        processor = Template(given["template"], wanted["pieces"])
        writer = PromptWriter(processor, case["kind"])
        video = VisualText("<video>", "<video>", (4,))
        for question, last in zip(given["questions"], wanted["last_question_characters"], strict=True):
            made = writer.lay_out(question, grid, video, "<video>", sequential_positions)
            told = [processor.tokenizer.decode(int(at)) for at in made.input_ids]
            assert [told[at] for at in made.role] == wanted["pieces"], (case["kind"], question)
            assert told[made.candidates[0]] == last and len(made.visual) == 4
            if wanted["fixed_index_in_official_scripts"] is not None:
                assert told[wanted["fixed_index_in_official_scripts"]] == wanted["piece_at_fixed_index"]
            seen += 1
    assert seen == 48


def test_sampling_says_what_is_wrong() -> None:
    assert positions(5, 1).tolist() == [0]
    with pytest.raises(DataError, match="needs frames"):
        positions(0)
    with pytest.raises(DataError, match="named by its number"):
        hcstvg_frames(["first.jpg"], 3)
    with pytest.raises(DataError, match="at least one unit"):
        hcstvg_frames(["0.jpg"], 0)
    with pytest.raises(DataError, match="different videos"):
        vidstg_frames([1, 2, 3], [1, 1, 0])
