"""Records per second of Uni-STG's model-free stages on one core; CPU seconds, because machines are shared.

    python perf/unistg_text.py                                # toy captions and templates
    python perf/unistg_text.py --captions my_captions.txt     # one caption per line

Measured, each as the median of `--rounds` (process time of this process, numpy on one thread):

- rules alone: text in, phrases out; analyze: Caption records in, Phrase records out, one per caption (subject) or all;
- captions checked: what stands before the job (`captions.checked`);
- filter: Refined records in (one per phrase that the analyzer found, `--boxes` boxes each: steady ones, and every tenth
  with an area jump), Sample or Drop records out, provenance included;
- analyzer + filter: both stages one after the other over the same records. Counted are the records that go through
  both; the captions that the analyzer drops cost time and count nothing.

Records are read from memory and thrown away: JSON and the stages that look at videos (annotator, refiner) are left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from tubelet.tube import Span
from tubelet.unistg.analyzer import AnalyzerSettings, analyze
from tubelet.unistg.analyzer_rules import phrases_by_rules
from tubelet.unistg.captions import Coarse, checked
from tubelet.unistg.filter import filter_records
from tubelet.unistg.records import Caption, Detected, Phrase, Refined

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


def tubes(phrases: Sequence[Phrase], boxes: int, seed: int = 0) -> list[Refined]:
    """What the Refiner would hand on: a box that drifts, every half second; every tenth doubles its side once."""
    rng = np.random.default_rng(seed)
    out = []
    for k, phrase in enumerate(phrases):
        times, half = np.arange(boxes) / 2, np.full((boxes, 1), 0.1)
        if k % 10 == 0:
            half[boxes // 2 :] *= 2
        centre = 0.5 + np.cumsum(rng.normal(0, 0.005, (boxes, 2)), axis=0).clip(-0.3, 0.3)
        box = np.concatenate([centre - half, centre + half], axis=1)
        scores = rng.uniform(0.4, 0.9, boxes)
        detected = Detected(
            phrase,
            times,
            tuple(box[:, None]),
            tuple(scores[:, None]),
            tuple(np.zeros((boxes, 1), dtype=np.int64)),
            "perf",
            "0" * 64,
        )
        span = Span(0.0, boxes / 2)
        out.append(Refined(detected, span, np.arange(boxes), box, scores, np.ones(boxes, dtype=np.int64)))
    return out


def through(records: Iterable[object]) -> None:
    deque(records, maxlen=0)


def per_second(count: int, work: Callable[[], object], rounds: int) -> float:
    spent = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        spent.append(time.process_time() - begin)
    return count / statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=Path, help="text file, one caption per line")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--boxes", type=int, default=20, help="of a tube")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    texts = made(given.count)
    if given.captions:
        texts = [line for line in given.captions.read_text(encoding="utf-8").splitlines() if line.strip()]
    coarse = [Coarse(str(k), "perf", f"{k % 97}.mp4", text, 1.0, 9.0, 30.0) for k, text in enumerate(texts)]
    captions = [Caption(one.id, one.source, one.video, one.text, Span(1.0, 9.0), 30.0) for one in coarse]
    phrases = [record for record in analyze(captions) if isinstance(record, Phrase)]
    refined = tubes(phrases, given.boxes)
    words = sum(len(text.split()) for text in texts) / len(texts)
    print(f"{len(texts)} captions of {words:.1f} words; {len(refined)} tubes of {given.boxes} boxes")
    everything = AnalyzerSettings(keep="all")

    def both() -> None:
        through(analyze(captions))
        through(filter_records(refined))

    for name, count, work in (
        ("rules alone", len(texts), lambda: through(phrases_by_rules(text) for text in texts)),
        ("analyze, subject", len(texts), lambda: through(analyze(captions))),
        ("analyze, all phrases", len(texts), lambda: through(analyze(captions, everything))),
        ("captions checked", len(texts), lambda: through(checked(coarse))),
        ("filter", len(refined), lambda: through(filter_records(refined))),
        ("analyzer + filter", len(refined), both),
    ):
        print(f"{name:22} {per_second(count, work, given.rounds):10,.0f} records/s per core")


if __name__ == "__main__":
    main()
