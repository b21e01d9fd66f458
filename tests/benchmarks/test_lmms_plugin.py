"""The lmms-eval plugin against stand-ins for the interface that lmms-eval documents (docs/model_guide, registry_v2)."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_models import Fake, make_video
from PIL import Image

from tubelet.benchmarks import lmms as plugin
from tubelet.errors import ModelError, VideoError
from tubelet.video import Video


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Registry:
    def __init__(self) -> None:
        self.known: dict[str, Manifest] = {}

    def register_manifest(self, manifest: Manifest, *, overwrite: bool = False) -> None:
        assert overwrite or manifest.model_id not in self.known
        self.known[manifest.model_id] = manifest


class Base:
    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.task_dict: dict[str, Any] = {}
        self.cache_hook = Hook()


class Hook:
    def __init__(self) -> None:
        self.kept: list[tuple[Any, ...]] = []

    def add_partial(self, *what: Any) -> None:
        self.kept.append(what)


@dataclass(frozen=True)
class Instance:
    args: tuple[Any, ...]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """lmms_eval with api.model.lmms and models.MODEL_REGISTRY_V2."""
    names = (
        "lmms_eval",
        "lmms_eval.api",
        "lmms_eval.api.model",
        "lmms_eval.models",
        "lmms_eval.models.registry_v2",
    )
    made = {name: types.ModuleType(name) for name in (*names, "lmms_eval.__main__")}
    made["lmms_eval.api.model"].lmms = Base  # type: ignore[attr-defined]
    made["lmms_eval.models"].MODEL_REGISTRY_V2 = Registry()  # type: ignore[attr-defined]
    made["lmms_eval.models.registry_v2"].ModelManifest = Manifest  # type: ignore[attr-defined]
    made["lmms_eval.__main__"].called = []  # type: ignore[attr-defined]
    made["lmms_eval.__main__"].cli_evaluate = lambda: made["lmms_eval.__main__"].called.append(1)  # type: ignore[attr-defined]
    made["lmms_eval"].models = made["lmms_eval.models"]  # type: ignore[attr-defined]
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    plugin.model_class.cache_clear()
    yield made
    plugin.model_class.cache_clear()


class Talker(Fake):
    """Answers with the name of the video and the question; fails on questions that say so."""

    def encode(self, video: Any, window: Any = None) -> str:
        assert isinstance(video, Video)
        self.encoded.append((video.path.name, window))
        return "picture" if video.is_image else video.path.name

    def ask(self, state: str, question: str, max_new_tokens: int = 64) -> str:
        if "fail" in question:
            raise ModelError("too hard")
        return f"{state}|{question}|{max_new_tokens}\n\nand more"


def requests(tasks: dict[str, Any], *asked: tuple[str, int]) -> list[Instance]:
    settings = {"max_new_tokens": 16, "until": ["\n\n"]}
    return [Instance((text, settings, lambda doc: doc["visual"], k, "t", "test")) for text, k in asked]


def test_answers_come_in_order_and_each_video_is_encoded_once(tmp_path: Path) -> None:
    a, b = (str(make_video(tmp_path / f"{x}.mp4", 4)) for x in "ab")
    docs = [{"visual": [a]}, {"visual": [b]}, {"visual": [a]}, {"visual": Image.new("RGB", (8, 8))}]
    tasks, talker, hook = {"t": {"test": docs}}, Talker(), Hook()
    found = plugin.answer_requests(
        talker, tasks, requests(tasks, ("<video>\nQ0", 0), ("Q1", 1), ("Q2", 2), ("Q3", 3), ("fail", 0)), hook
    )
    assert found == ["a.mp4|Q0|16", "b.mp4|Q1|16", "a.mp4|Q2|16", "picture|Q3|16", ""]
    assert [name for name, _ in talker.encoded] == ["a.mp4", "b.mp4", "<memory>"]
    assert len(hook.kept) == 5


def test_what_cannot_be_shown_is_answered_with_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    docs = [
        {"visual": [str(tmp_path / "gone.mp4")]},
        {"visual": ["a", "b"]},
        {"visual": None},
        {"visual": [3]},
    ]
    tasks = {"t": {"test": docs}}
    assert plugin.answer_requests(Talker(), tasks, requests(tasks, *(("Q", k) for k in range(4)))) == [""] * 4
    assert "gone.mp4" in caplog.text and "2 of them" in caplog.text and "no picture" in caplog.text
    with pytest.raises(VideoError):
        plugin._source([str(tmp_path / "gone.mp4")])


def test_the_class_is_found_by_its_path_and_drives_a_model(
    stub: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    import importlib

    loaded: list[tuple[Any, ...]] = []
    monkeypatch.setattr("tubelet.grounder.load", lambda *args: loaded.append(args) or Talker())
    plugin.register()
    path = stub["lmms_eval.models"].MODEL_REGISTRY_V2.known["tubelet"].simple_class_path
    module, name = path.rsplit(".", 1)
    made = getattr(importlib.import_module(module), name)  # as lmms-eval does it
    assert issubclass(made, Base) and made.is_simple and made is plugin.TubeletLmms
    model = made(pretrained="some/model", device="cpu", batch_size="1", max_batch_size=None)
    assert loaded == [("some/model", "cpu", None)] and (model._rank, model._world_size) == (0, 1)
    video = str(make_video(tmp_path / "a.mp4", 4))
    model.task_dict = {"t": {"test": [{"visual": [video]}]}}
    assert model.generate_until(requests(model.task_dict, ("Q", 0))) == ["a.mp4|Q|16"]
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(ModelError, match="tubelet model answers"):
            method([])
    with pytest.raises(ModelError, match="got max_frames"):
        made(max_frames=3)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ModelError, match="one process"):
        made()


def test_its_command_line_is_started_with_the_model_known(stub: Any) -> None:
    plugin.main()
    assert stub["lmms_eval.__main__"].called == [1]
    assert "tubelet" in stub["lmms_eval.models"].MODEL_REGISTRY_V2.known


def test_older_versions_have_a_table_of_models(stub: Any) -> None:
    models = stub["lmms_eval.models"]
    del models.MODEL_REGISTRY_V2
    models.AVAILABLE_MODELS = {}
    plugin.register()
    assert models.AVAILABLE_MODELS == {"tubelet": "tubelet.benchmarks.lmms.TubeletLmms"}
    del models.AVAILABLE_MODELS
    with pytest.raises(ModelError, match="another version"):
        plugin.register()


def test_without_lmms_eval_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    plugin.model_class.cache_clear()
    for use in (plugin.register, plugin.manifest, plugin.model_class, plugin.main):
        with pytest.raises(ModelError, match="pip install lmms-eval"):
            use()


def test_importing_the_plugin_imports_no_lmms_eval() -> None:
    code = "import sys, tubelet.benchmarks.lmms as m; assert not [k for k in sys.modules if k.startswith('lmms')]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
