"""Captions (task elc, reg): BLEU, METEOR, ROUGE-L and CIDEr over a corpus, through pycocoevalcap.

pycocoevalcap is an optional package, and its tokeniser and METEOR are Java programs: what is missing raises a
ModelError that says so; no number is ever made up or left out silently. SPICE is not offered (it downloads models).
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Sequence
from typing import Any

from tubelet.errors import DataError, ModelError

CAPTION_METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")


def score_captions(
    predicted: Sequence[str],
    references: Sequence[str | Sequence[str]],
    metrics: Sequence[str] = CAPTION_METRICS,
) -> dict[str, float]:
    """Corpus scores of captions, each against one reference or several, as fractions (CIDEr up to 10).

    Raises ModelError when pycocoevalcap or Java is missing, DataError for an unknown metric or unequal lengths.
    """
    unknown = [m for m in metrics if m not in CAPTION_METRICS]
    if unknown:
        raise DataError(f"unknown caption metric {unknown[0]!r}; there are {', '.join(CAPTION_METRICS)}")
    if len(predicted) != len(references):
        raise DataError(f"{len(predicted)} captions for {len(references)} references")
    if not predicted:
        raise DataError("no caption to score")
    try:
        from pycocoevalcap.bleu.bleu import Bleu  # type: ignore[import-not-found]
        from pycocoevalcap.cider.cider import Cider  # type: ignore[import-not-found]
        from pycocoevalcap.meteor.meteor import Meteor  # type: ignore[import-not-found]
        from pycocoevalcap.rouge.rouge import Rouge  # type: ignore[import-not-found]
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # type: ignore[import-not-found]
    except ImportError as error:
        raise ModelError(
            "captions are scored with pycocoevalcap: install it (pip install 'tubelet[captions]')"
        ) from error
    if shutil.which("java") is None:
        raise ModelError(
            "pycocoevalcap tokenises and computes METEOR with Java, and there is no java program here: "
            "install a Java runtime (version 8 or later) or leave the captions out"
        )
    true = {k: [r] if isinstance(r, str) else list(r) for k, r in enumerate(references)}
    tokenizer = PTBTokenizer()
    gts = tokenizer.tokenize({k: [{"caption": _one_line(c)} for c in v] for k, v in true.items()})
    res = tokenizer.tokenize({k: [{"caption": _one_line(c)}] for k, c in enumerate(predicted)})
    out: dict[str, float] = {}
    orders = [int(m[-1]) for m in metrics if m.startswith("Bleu")]
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints its intermediate counts
        if orders:
            bleu = Bleu(max(orders)).compute_score(gts, res)[0]
            out |= {f"Bleu_{k}": float(bleu[k - 1]) for k in orders}
        scorers: dict[str, Any] = {"METEOR": Meteor, "ROUGE_L": Rouge, "CIDEr": Cider}
        for name, scorer in scorers.items():
            if name in metrics:
                out[name] = float(scorer().compute_score(gts, res)[0])
    return {m: out[m] for m in metrics}


def _one_line(text: str) -> str:
    """The tokeniser counts captions by lines."""
    return " ".join(text.split())
