"""What a grounding job leaves in its folder: predictions.jsonl and the card job.json.

Both are written whole or not at all, from the ledger alone, when the job is through. Every pair gets a line; one whose
video was set aside is a failed prediction with the reason.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.errors import OutputError
from tubelet.scale.ledger import Ledger
from tubelet.scale.pairs import Pair

PREDICTIONS, CARD = "predictions.jsonl", "job.json"
CARD_SCHEMA = 1
STAGE = "ground"
KEPT_BAD = 100
"""Bad lines, and reasons, that the card names; all are counted."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What came of it. pairs = answered + failed; absent: of the answered, those that are not in their video.

    failures: how many pairs failed for which reason, with <video> in the place of names.
    bad_lines: lines that are no pairs, left out.
    """

    folder: Path
    videos: int
    videos_aside: int
    pairs: int
    answered: int
    absent: int
    failed: int
    bad_lines: int
    failures: Mapping[str, int]

    @property
    def ok(self) -> bool:
        return not (self.failed or self.bad_lines)


def write_predictions(ledger: Ledger, folder: Path, in_order: bool) -> BatchResult:
    """predictions.jsonl, streamed, whole or not at all."""
    from tubelet.scale.grounding_step import failed_prediction, line_of

    target = folder / PREDICTIONS
    part = target.with_name(f".{target.name}.part")
    reasons: Counter[str] = Counter()
    n = absent = 0
    videos, aside = set[str](), set[str]()
    try:
        with part.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for key, payload, result, reason in ledger.results(in_order=in_order):
                pair = Pair.from_json(payload)
                videos.add(key)
                line = result
                if line is None:
                    aside.add(key)
                    line = line_of(pair, failed_prediction(pair, _sentence(reason, pair)))
                file.write(line + "\n")
                n += 1
                prediction = json.loads(line)["prediction"]
                if prediction["failure"] is not None:
                    reasons[_kind(prediction["failure"], pair)] += 1
                elif not prediction["found"]:
                    absent += 1
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; the answers are in the ledger, go on with --resume"
        ) from error
    failed = sum(reasons.values())
    bad = json.loads(ledger.meta("bad_lines") or "{}")
    return BatchResult(
        folder=folder,
        videos=len(videos),
        videos_aside=len(aside),
        pairs=n,
        answered=n - failed,
        absent=absent,
        failed=failed,
        bad_lines=int(bad.get("count", 0)),
        failures=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    )


def _sentence(reason: str | None, pair: Pair) -> str:
    """Why an item was set aside, as its pair calls the video and without the names of stage and class."""
    told = re.sub(rf"^{STAGE}: (?:\w+Error: )?", "", reason or "not answered")
    return told.replace(pair.path, pair.video)


def _kind(reason: str, pair: Pair) -> str:
    """The reason without what differs from pair to pair, so that equal ones are counted together."""
    folder = str(Path(pair.path).parent)
    names = {pair.path, pair.video, Path(pair.path).name, folder} - {"", ".", "/"}
    for name in sorted(names, key=len, reverse=True):
        word = rf"(?<![\w.-]){re.escape(name)}(?![\w-])"  # a video may be called "a"
        reason = re.sub(word, "<folder>" if name == folder else "<video>", reason)
    return reason


def write_card(
    ledger: Ledger,
    folder: Path,
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    result: BatchResult,
) -> None:
    """settings: all, as plain data; identity: what answers depend on."""
    from tubelet.benchmarks.run_card import versions
    from tubelet.benchmarks.run_folder import write_whole

    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    reasons = list(result.failures.items())
    card = {
        "schema": CARD_SCHEMA,
        "model": identity["model"],
        "revision": identity["revision"],
        "fingerprint": fingerprint,
        "pairs_sha256": identity["pairs"],
        "versions": versions(),
        "settings": dict(settings),
        "counts": {
            "videos": result.videos,
            "videos_done": result.videos - result.videos_aside,
            "videos_aside": result.videos_aside,
            "pairs": result.pairs,
            "answered": result.answered,
            "absent": result.absent,
            "failed": result.failed,
            "bad_lines": result.bad_lines,
        },
        "failures": dict(reasons[:KEPT_BAD]),
        "other_failures": sum(n for _, n in reasons[KEPT_BAD:]),
        "bad_lines": json.loads(ledger.meta("bad_lines") or "{}").get("first", []),
    }
    write_whole(folder / CARD, json.dumps(card, ensure_ascii=False, indent=1) + "\n")
