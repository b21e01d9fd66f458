"""Captions per second of Uni-STG's analyzer by rules, on one core; CPU seconds, because machines are shared.

    python perf/unistg_text.py                                # toy captions and templates
    python perf/unistg_text.py --captions my_captions.txt     # one caption per line

Measured: the rules alone (text in, phrases out), the stage (`analyze`: records in, records out), and reading and
checking captions (`captions.checked`). Best of `--rounds`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tubelet.tube import Span
from tubelet.unistg.analyzer import AnalyzerSettings, analyze
from tubelet.unistg.analyzer_rules import phrases_by_rules
from tubelet.unistg.captions import Coarse, checked
from tubelet.unistg.records import Caption

PLACES = ("on the table", "in the kitchen", "next to the sofa", "behind the car", "", "from the drawer")
WHO = (
    "a man in a red hat",
    "she",
    "the person",
    "person",
    "a group of people",
    "two dogs",
    "the camera",
    "he",
)
DOES = (
    "opens the door",
    "takes out a knife",
    "is eating a sandwich",
    "walks away",
    "cuts the peeled onion",
    "pans",
)


def made(count: int, seed: int = 0) -> list[str]:
    """Captions of about ten words, hardly any twice."""
    rng = np.random.default_rng(seed)
    return [
        f"{rng.choice(WHO)} {rng.choice(DOES)} {rng.choice(PLACES)} and then {rng.choice(DOES)} number {k}."
        for k in range(count)
    ]


def per_second(count: int, work: Callable[[], object], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        begin = time.process_time()
        work()
        best = min(best, time.process_time() - begin)
    return count / best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=Path, help="text file, one caption per line")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    texts = made(given.count)
    if given.captions:
        texts = [line for line in given.captions.read_text(encoding="utf-8").splitlines() if line.strip()]
    coarse = [Coarse(str(k), "perf", f"{k % 97}.mp4", text, 1.0, 9.0, 30.0) for k, text in enumerate(texts)]
    captions = [Caption(one.id, one.source, one.video, one.text, Span(1.0, 9.0), 30.0) for one in coarse]
    phrases_by_rules("warm up")
    words = sum(len(text.split()) for text in texts) / len(texts)
    print(f"{len(texts)} captions of {words:.1f} words")
    everything = AnalyzerSettings(keep="all")
    for name, work in (
        ("rules alone", lambda: [phrases_by_rules(text) for text in texts]),
        ("analyze, subject", lambda: list(analyze(captions))),
        ("analyze, all phrases", lambda: list(analyze(captions, everything))),
        ("captions checked", lambda: list(checked(coarse))),
    ):
        print(f"{name:22} {per_second(len(texts), work, given.rounds):10,.0f} captions/s per core")


if __name__ == "__main__":
    main()
