"""The page and the markdown: the numbers of `score_run`, well-formed, self-contained, nothing from data is markup."""

from __future__ import annotations

import base64
import inspect
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fake_models import Fake, make_vstar
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from report_help import Page, record, tube, write_run

from tubelet.benchmarks.report.charts import histogram, interval_glyph, reliability_chart
from tubelet.benchmarks.report.contents import number, signed
from tubelet.benchmarks.report.markdown import plain, table
from tubelet.benchmarks.report.markup import Markup, el, text
from tubelet.benchmarks.report.write import write_report
from tubelet.benchmarks.run import run_benchmark
from tubelet.benchmarks.run_folder import read_run
from tubelet.benchmarks.run_score import score_run
from tubelet.cli.reporting import report
from tubelet.errors import DataError, OutputError
from tubelet.metrics.bootstrap import Interval, paired_difference
from tubelet.tube import Prediction

EVIL = "</td><script>alert(1)</script><img src=x onerror='y'>\"><b>|`a`|\n# *head* [l](http://x) &amp; \x07"


class Other(Fake):
    """Answers otherwise than Fake, and fails on one video."""

    name = "other"

    def answer(self, state, query, task, span):
        return super().answer(state + "!", query, task, span)


@pytest.fixture(scope="module")
def vstar(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Data, and two runs on it: four tasks, 8 queries each."""
    base = tmp_path_factory.mktemp("report")
    data = make_vstar(base / "data", videos=4)
    run_benchmark(Fake(), "v-star", data, base / "a")
    run_benchmark(Other(broken=["v1.mp4"]), "v-star", data, base / "b")
    return data, base / "a", base / "b"


@pytest.fixture(scope="module")
def both(vstar: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    data, a, b = vstar
    html, markdown = write_report([a, b], tmp_path_factory.mktemp("out"), data=data, cases=2)
    return Page(html.read_text(encoding="utf-8")), markdown.read_text(encoding="utf-8")


def test_the_page_says_the_numbers_of_score_run(vstar: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, a, _ = vstar
    html, markdown = write_report([a], tmp_path, cases=0)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["report.html", "report.md"], "and no half file"
    page, said = Page(html.read_text()), markdown.read_text()
    scores = score_run(read_run(a))
    tables = [t for t in page.tables if t[0][0].strip() == "metric"]
    scored = [part for part in scores.parts.values() if part.metrics]
    assert len(tables) == len(scored) == 3
    for part, rows in zip(scored, tables, strict=True):
        shown = {row[0]: row for row in rows[1:]}
        assert set(shown) == set(part.metrics)
        for name, value in part.metrics.items():
            assert " ".join(shown[name][2].split()) == number(value)
            assert f"| {plain(name)} | {plain(number(value))} |" in said
            assert isinstance(value, Interval) and shown[name][1] == str(value.n)
    domains = scores.parts["tvg"].groups["domain"]
    for kind, metrics in domains.items():
        assert any(
            r[0] == kind and number(metrics["tIoU"]) in " ".join(r[2].split()) for t in page.tables for r in t
        )
    assert "free words" in page.text, "notes of the scores are on the page"


def test_two_runs_are_compared_query_by_query(vstar: tuple[Path, Path, Path], both: tuple[Page, str]) -> None:
    page, markdown = both
    one, two = (score_run(read_run(f)) for f in vstar[1:])
    tables = [t for t in page.tables if t[0][0].strip() == "per-query value"]
    assert len(tables) == 3
    for task, rows in zip([t for t in one.parts if one.parts[t].values], tables, strict=True):
        shown = {row[0]: " ".join(row[1].split()) for row in rows[1:]}
        for name, column in one.parts[task].values.items():
            other = two.parts[task].values[name]
            expected = signed(paired_difference([other[k] for k in column], list(column.values())))
            assert shown[name].startswith(expected), (task, name)
            assert plain(expected) in markdown
    assert "Largest gains" in page.text or "Largest losses" in page.text
    assert "the video cannot be encoded: no frame to my taste" in page.text and "other" in page.text
    assert [row[1:] for row in page.table("field") if row[0] == "model"] == [["fake", "other"]]


def test_the_page_is_self_contained_and_accessible(both: tuple[Page, str]) -> None:
    page, _ = both  # that it is balanced was checked when it was read
    assert page.elements[0][0] == "html" and page.elements[0][1]["lang"] == "en"
    names = {name for name, _ in page.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form", "video"}
    for name, attributes in page.elements:
        assert not [a for a in attributes if a.startswith("on")], name
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
        assert "url(" not in (attributes.get("style") or "")
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {str(a["href"])[1:] for a in page.all("a")} <= set(ids)
    images = page.all("img")
    assert images and all(len(str(a["alt"])) > 20 for a in images)
    for image in images:
        kind, _, data = str(image["src"]).partition(",")
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == "data:image/jpeg;base64" and picture.size == (48, 32)
    assert all(a.get("scope") for a in page.all("th"))
    charts = [a for a in page.all("svg") if a.get("role") == "img"]
    assert charts and all(a["aria-label"] for a in charts)
    assert all(a.get("role") == "img" or a.get("aria-hidden") == "true" for a in page.all("svg"))


def test_the_style_sheet_loads_nothing_and_knows_the_dark() -> None:
    from tubelet.benchmarks import report as package

    style = (Path(str(package.__file__)).parent / "style.css").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in style and "@media print" in style
    assert not re.search(r"url\(|@import|</|expression\(|http", style)
    assert style.count("{") == style.count("}")
    light, dark = (
        set(re.findall(r"(--[\w]+):", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    )
    assert light == dark and set(re.findall(r"var\((--\w+)\)", style)) <= light | {"--c"}


def test_nothing_from_data_is_markup(tmp_path: Path) -> None:
    odd = [
        record("q0" + EVIL.strip(), "v0", (0.5, 2.0), query=EVIL, tags={"kind": EVIL, EVIL: "a"}),
        record("q1", "v1", (0.5, 2.0), query="ש \u202e right to left", tags={"kind": "b", EVIL: "b"}),
        record("q2", "v2", None, query=EVIL, tags={"kind": EVIL + "2"}),
        record("q3", "v3", None, query=EVIL, tags={"kind": EVIL + "3"}),
    ]
    answers = {
        odd[0].id: Prediction("v", EVIL, "stvg", failure=EVIL),
        "q1": ((tube(0.5, 2.0, (0, 0, 1, 1)),), 0.9),
        "q2": ((replace(tube(0.5, 2.0, (0, 0, 1, 1)), label=EVIL),), 0.9),
        "q3": ((), 0.2),
    }
    folder = write_run(tmp_path / "a", odd, answers, model=EVIL, sampling={EVIL: EVIL})
    other = write_run(tmp_path / "b", odd, {}, model="x", opened=[])
    with pytest.raises(DataError, match="no predictions"):
        write_report([folder, other], tmp_path / "out")
    html, markdown = write_report([folder], tmp_path / "out")
    page = Page(html.read_text(encoding="utf-8"))
    assert not page.all("script") and not page.all("img")
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert "<script>alert(1)</script>" in page.text, "it is shown, as text"
    assert "\x07" not in page.text and "□" in page.text
    assert "Content-Security-Policy" in {a.get("http-equiv") for a in page.all("meta")}
    lines = markdown.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.search(r"(?<!\\)<", line)]
    tables: list[list[str]] = [[]]
    for line in lines:
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    for rows in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1, rows


@given(st.text(), st.text(), st.dictionaries(st.sampled_from(["alt", "title", "klass"]), st.text()))
def test_any_text_stays_text(inside: str, beside: str, attributes: dict[str, str]) -> None:
    page = Page("<div>" + el("p", inside, el("b", beside), **attributes) + "</div>")
    assert [name for name, _ in page.elements] == ["div", "p", "b"]
    assert "".join(page.said).count("□") == "".join(page.said).count("□")
    kept = "".join(c for c in inside + beside if c >= " ")
    assert len(Page(f"<i>{text(kept)}</i>").text.split()) == len("".join(map(_shown, kept)).split())
    cells = table(["a", "b"], [[inside, beside]])
    assert len(cells) == 4 and all("\n" not in line for line in cells[:3])


def _shown(c: str) -> str:
    odd = "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" or c in "\ufffe\uffff"
    return "□" if odd else c


def test_without_videos_the_page_says_so(vstar: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, a, _ = vstar
    html, _ = write_report([a], tmp_path)
    page = Page(html.read_text())
    assert not page.all("img") and "give it with --data" in page.text
    gone = tmp_path / "gone"
    gone.mkdir()
    html, _ = write_report([a], tmp_path, data=gone)
    page = Page(html.read_text())
    assert not page.all("img") and "is not below the data folder" in page.text
    assert str(tmp_path) not in html.read_text(), "a page names no path of the machine"


def test_the_same_runs_make_the_same_page(vstar: tuple[Path, Path, Path], tmp_path: Path) -> None:
    data, a, b = vstar
    one = write_report([a, b], tmp_path / "1", data=data, cases=1)
    two = write_report([a, b], tmp_path / "2", data=data, cases=1)
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_the_command_writes_beside_the_run(
    vstar: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, a, b = vstar
    report([a], data=data, protocol="vstar", cases=0)
    assert capsys.readouterr().out.splitlines() == [str(a / "report.html"), str(a / "report.md")]
    assert "Protocol vstar" in Page((a / "report.html").read_text()).text
    before = (a / "metrics.json").read_bytes(), json.loads((a / "run.json").read_text())
    report([a, b], out=tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "report.html").is_file()
    assert ((a / "metrics.json").read_bytes(), json.loads((a / "run.json").read_text())) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the folder"):
        report([a], out=tmp_path / "file")
    with pytest.raises(DataError, match="scores none of the tasks"):
        report([a], out=tmp_path, protocol="no-such")


def test_charts_of_nothing_and_of_odd_numbers() -> None:
    assert interval_glyph(Interval(float("nan"), 0, 1, 0)) == ""
    for chart in (
        interval_glyph(Interval(2.0, -1.0, 3.0, 5)),
        histogram([[], [0.5, float("nan")]], ["a", "b"], "t", "x"),
        reliability_chart([], "t"),
    ):
        page = Page(chart)
        numbers = re.findall(r' (?:x|y|cx|cy|width|height)\d?="([^"]+)"', chart)
        assert (
            isinstance(chart, Markup) and page.elements and all(n.replace(".", "").isdigit() for n in numbers)
        )


def test_glyphs_say_what_they_mean() -> None:
    """The dot lies where the mean is; the bar spans the interval."""
    page = Page(interval_glyph(Interval(0.25, 0.0, 0.5, 9)))
    (dot,), bar = page.all("circle"), page.all("rect")[0]
    assert float(str(dot["cx"])) == pytest.approx(4 + 0.25 * 78, abs=0.1)
    assert float(str(bar["x"])) == 4.0 and float(str(bar["width"])) == pytest.approx(39, abs=0.1)


def test_the_docs_name_the_options_there_are() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "reports.md"
    said = page.read_text(encoding="utf-8")
    options = {name.replace("_", "-") for name in inspect.signature(report).parameters} - {"runs"}
    assert set(re.findall(r"^\| `--(\w+)`", said, re.MULTILINE)) == options
    for command in re.findall(r"^    tubelet report (.+)$", said, re.MULTILINE):
        assert set(re.findall(r"--(\w+)", command)) <= options
    for target in re.findall(r"\]\(([\w./#-]+)\)", said):
        file, _, anchor = target.partition("#")
        heads = re.findall(r"^#+ (.+)$", (page.parent / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target
