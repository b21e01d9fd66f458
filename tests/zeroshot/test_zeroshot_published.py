"""Published frame sampling and role tokens, case by case."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tubelet.errors import DataError
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


@needs_golden
def test_role_text_is_what_all_renderings_share() -> None:
    from tubelet.mllm.layout import _common_suffix

    found = cases("role_suffix")
    for case in found:
        letters = [np.array([ord(c) for c in text]) for text in case["input"]["rendered"]]
        shared = min(_common_suffix(a, b) for a, b in combinations(letters, 2))
        text = case["input"]["rendered"][0]
        assert text[len(text) - shared :] == case["output"]["role_text"], case["id"]
        assert "".join(case["output"]["pieces"]) == case["output"]["role_text"]
    assert len(found) == 12


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
