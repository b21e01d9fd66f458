"""Scores of tubes, spans, boxes, choices and captions, under named protocols.

`evaluate` is the way in for tubes: predictions and truths by query id, a protocol's name, a `Report` with intervals
and failures. `score_tubes` is the formula with explicit `Rules`; `PROTOCOLS` names the rules in use elsewhere.
`moments`, `referring`, `choices`, `captions` and `targets` score what is not one tube. docs/metrics.md explains.
"""

from tubelet.metrics.bootstrap import Interval, bootstrap_mean, paired_difference
from tubelet.metrics.captions import score_captions
from tubelet.metrics.choices import CHOICE_READERS, score_choices
from tubelet.metrics.evaluate import Report, by_group, compare, evaluate
from tubelet.metrics.grounding import Scores, score_many, score_prediction, summarise
from tubelet.metrics.moments import SPAN_PROTOCOLS, score_didemo, score_moments
from tubelet.metrics.protocols import PROTOCOLS, Protocol
from tubelet.metrics.ragged import Ragged, Tubes
from tubelet.metrics.referring import BOX_PROTOCOLS, score_boxes
from tubelet.metrics.targets import score_targets
from tubelet.metrics.truth import Truth
from tubelet.metrics.tubes import Rules, TubeScores, score_tubes

__all__ = [
    "BOX_PROTOCOLS",
    "CHOICE_READERS",
    "PROTOCOLS",
    "SPAN_PROTOCOLS",
    "Interval",
    "Protocol",
    "Ragged",
    "Report",
    "Rules",
    "Scores",
    "Truth",
    "TubeScores",
    "Tubes",
    "bootstrap_mean",
    "by_group",
    "compare",
    "evaluate",
    "paired_difference",
    "score_boxes",
    "score_captions",
    "score_choices",
    "score_didemo",
    "score_many",
    "score_moments",
    "score_prediction",
    "score_targets",
    "score_tubes",
    "summarise",
]
