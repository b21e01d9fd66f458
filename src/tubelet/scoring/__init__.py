"""Scoring prediction files, ours and other people's, under several protocols side by side.

`score_file(path, "vue_stg", benchmark="vue-stg", data="data/vue-stg", protocols=["vue_stg", "tubelet"])` reads a file
of any format of `FORMATS`, finds the truth (in a dataset, or in the records themselves), and returns `FileScores`:
one column per protocol, and counts of everything that was odd in the file. `render` prints it as a table.

    answers     what one record of any format says, raw; units; counts of odd things
    text        spans and boxes in free text (Qwen-style answers)
    lines       streaming of files; what is broken is counted or raised
    formats     the formats as data, one reader each (`read_*`)
    checks      raw answers to predictions: nothing is repaired silently
    truths      the truth of a dataset without its videos; answers matched to queries
    columns     one protocol over batches of cases
    score       all of it; table: text and JSON

docs/scoring.md has an example of every format and says what each count means.
"""

from tubelet.scoring.formats import FORMATS
from tubelet.scoring.score import FileScores, score_file
from tubelet.scoring.table import render

__all__ = ["FORMATS", "FileScores", "render", "score_file"]
