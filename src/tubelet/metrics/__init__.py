"""Scores of tubes and spans."""

from tubelet.metrics.bootstrap import Interval, bootstrap_mean
from tubelet.metrics.grounding import Scores, Truth, score_prediction, summarise

__all__ = ["Interval", "Scores", "Truth", "bootstrap_mean", "score_prediction", "summarise"]
