"""The numbers and tables of docs/metrics.md are what the code gives."""

from __future__ import annotations

from pathlib import Path

import metrics_synthetic as synthetic
import pytest

from tubelet.metrics.choices import CHOICE_READERS
from tubelet.metrics.moments import SPAN_PROTOCOLS
from tubelet.metrics.protocols import PROTOCOLS
from tubelet.metrics.referring import BOX_PROTOCOLS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("rows", ["protocol_rows", "choice_rows", "extension_rows", "rule_rows"])
def test_tables_are_measured(rows: str) -> None:
    for line in getattr(synthetic, rows)():
        assert line in PAGE.splitlines(), f"docs/metrics.md should say: {line}"


def test_every_protocol_and_its_surprises_are_on_the_page() -> None:
    for name, p in PROTOCOLS.items():
        assert f"**`{name}`**" in PAGE and p.source in PAGE, name
        for surprise in p.surprises:
            assert surprise in " ".join(PAGE.split()), (name, surprise)
    for names in (SPAN_PROTOCOLS, BOX_PROTOCOLS, CHOICE_READERS):
        for name in names:
            assert f"`{name}`" in PAGE, name
