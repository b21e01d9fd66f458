"""The README is executed: its shell and Python blocks, in order, in an empty folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_commands_and_python_of_the_readme_run(tmp_path: Path) -> None:
    shell, python = blocks("sh"), blocks("python")
    assert shell and python
    tubelet = shutil.which("tubelet", path=str(Path(sys.executable).parent))
    assert tubelet is not None, "the package is installed with its command"
    for line in "\n".join(shell).splitlines():
        if line.strip():
            command = line.replace("tubelet", tubelet, 1)
            done = subprocess.run(
                command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "annotated.mp4").stat().st_size > 1000
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(python)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == 2


def test_numbers_of_the_readme_are_those_of_the_results() -> None:
    """Rounded to two digits: the embedded model, both ways to read the span, and the baselines."""
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    table = results.split("## `spacevllm-pico` on the toy world's test split")[1].split("\n## ")[0]

    def means(row: str) -> list[str]:
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {row}")]
        return [f"{float(cell.split()[0]):.2f}" for cell in line.split("|")[2:-1] if cell.strip() not in "-"]

    told = " ".join(README.split("On 500 test videos")[1].split("Intervals")[0].split())
    model, text = means("`spacevllm-pico` |"), means("the same, times as text")
    assert f"m_tIoU {model[0]}, m_vIoU {model[1]} and rejects" in told and f"accuracy of {model[-1]};" in told
    assert f"times as text, the paper's way, m_tIoU {text[0]} and m_vIoU {text[1]}." in told
    constant, track = means("constant centre"), means("random track")
    assert f"constant box has {constant[0]}, {constant[1]} and none" in told
    assert f"random track {track[0]} and {track[1]}." in told


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!http)[^)]+)\)", README))
def test_links_of_the_readme_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_tree_in_the_readme_is_the_tree() -> None:
    """Every folder and module of the package is named in the README, and nothing else is."""
    tree = README.split("## Where things are")[1]
    named = set(re.findall(r"^ {6}([\w/.,]+(?:, [\w.]+)*)  ", tree, flags=re.MULTILINE))
    names = {part.strip().rstrip("/") for entry in named for part in entry.split(",")}
    package = ROOT / "src" / "tubelet"
    real = {p.name for p in package.iterdir() if not p.name.startswith("__") and p.name != "py.typed"} | {
        "__init__.py"
    }
    hidden = {"errors.py"}  # its name says it
    assert names == real - hidden
