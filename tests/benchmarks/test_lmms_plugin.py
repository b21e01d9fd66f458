"""The lmms-eval plugin against stand-ins for the parts of lmms-eval 0.7.3 that it meets.

They keep what that version checks: the base class is abstract, its objects say rank and world size, a request has
`arguments` and `metadata`, the registry refuses a conflict and a class of the wrong kind. Where lmms-eval itself is
installed, the last test meets the real registry and base class.
"""

from __future__ import annotations

import abc
import importlib
import importlib.util
import json
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fake_models import Fake, make_video
from PIL import Image

from tubelet.benchmarks import lmms as plugin
from tubelet.errors import ModelError, VideoError
from tubelet.frames import Clip
from tubelet.video import Video


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.simple_class_path is None and self.chat_class_path is None:
            raise ValueError("requires at least one class path")


class Registry:
    def __init__(self) -> None:
        self.known: dict[str, Manifest] = {}

    def register_manifest(self, manifest: Manifest, *, overwrite: bool = False) -> None:
        before = self.known.get(manifest.model_id)
        if before is not None and before != manifest and not overwrite:
            raise ValueError("conflicting class paths")
        self.known[manifest.model_id] = manifest

    def get_model_class(self, name: str) -> type:
        module, _, class_name = str(self.known[name].simple_class_path).rpartition(".")
        found = getattr(importlib.import_module(module), class_name)
        if not (isinstance(found, type) and issubclass(found, Base)) or not found.is_simple:
            raise TypeError("is not a simple subclass of lmms")
        return found


class Base(abc.ABC):
    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.cache_hook = Hook()
        self.task_dict: dict[str, Any] = {}

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any]) -> Any:
        """Numbers become numbers there; what is None is not handed over."""
        told = dict(pair.split("=", 1) for pair in arg_string.split(",") if pair)
        values = {key: int(text) if text.isdecimal() else text for key, text in told.items()}
        return cls(**values, **{k: v for k, v in additional_config.items() if v is not None})

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size


class Hook:
    """Hashes the request as JSON, as CacheHook does."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.kept.append(json.dumps([attr, *req]))


@dataclass
class Instance:
    request_type: str
    arguments: tuple[Any, ...]
    idx: int
    metadata: dict[str, Any]
    resps: list[Any] = field(default_factory=list)
    task_name: str | None = None
    doc_id: Any = None
    repeats: Any = None

    def __post_init__(self) -> None:
        self.task_name, self.doc_id = self.metadata["task"], self.metadata["doc_id"]
        self.repeats = self.metadata["repeats"]

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments if isinstance(self.arguments, tuple) else (self.arguments,)


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
        if isinstance(video, Clip):
            self.encoded.append((f"clip of {len(video)}", window))
            return f"{len(video)} frames of {video.grid.width} x {video.grid.height}"
        assert isinstance(video, Video)
        self.encoded.append((video.path.name, window))
        return "picture" if video.is_image else video.path.name

    def ask(self, state: str, question: str, max_new_tokens: int = 64) -> str:
        if "fail" in question:
            raise ModelError("too hard")
        return f"{state}|{question}|{max_new_tokens}\n\nand more"


def requests(tasks: dict[str, Any], *asked: tuple[str, int]) -> list[Instance]:
    settings = {"max_new_tokens": 16, "until": ["\n\n"]}
    return [
        Instance(
            "generate_until",
            (text, settings, lambda doc: doc["visual"], k, "t", "test"),
            0,
            {"task": "t", "doc_id": k, "repeats": 1},
        )
        for text, k in asked
    ]


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


def test_pictures_of_one_size_are_the_frames_of_a_video() -> None:
    """MVBench's episodic_reasoning hands over a list of pictures."""
    small, large = (Image.new("RGB", size) for size in ((8, 6), (9, 6)))
    docs = [{"visual": [small] * 5}, {"visual": [small, large]}, {"visual": [small, "a.mp4"]}]
    tasks, talker = {"t": {"test": docs}}, Talker()
    found = plugin.answer_requests(talker, tasks, requests(tasks, ("Q", 0), ("R", 0), ("Q", 1), ("Q", 2)))
    assert found == ["5 frames of 8 x 6|Q|16", "5 frames of 8 x 6|R|16", "", ""]
    assert talker.encoded == [("clip of 5", None)]


def test_pictures_are_not_kept_for_later() -> None:
    """A benchmark of pictures does not fit into memory: each is made when it is its turn."""
    alive: set[int] = set()

    class Picture:
        size = (8, 6)

        def __init__(self, number: int) -> None:
            self.number = number
            alive.add(number)

        def __del__(self) -> None:
            alive.discard(self.number)

        def save(self) -> None: ...

        def convert(self, mode: str) -> Image.Image:
            assert len(alive) <= 1, "pictures of other questions are in memory"
            return Image.new(mode, self.size)

    tasks = {"t": {"test": [{"k": k} for k in range(4)]}}
    asked = [
        Instance(
            "generate_until",
            ("Q", {"until": "\n"}, lambda doc: [Picture(doc["k"])], k, "t", "test"),
            0,
            {"task": "t", "doc_id": k, "repeats": 1},
        )
        for k in range(4)
    ]
    assert plugin.answer_requests(Talker(), tasks, asked) == ["picture|Q|64"] * 4


def test_what_cannot_be_shown_is_answered_with_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    docs = [
        {"visual": [str(tmp_path / "gone.mp4")]},
        {"visual": ["a", "b"]},  # two videos
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
    loaded: list[tuple[Any, ...]] = []
    monkeypatch.setattr("tubelet.grounder.load", lambda *args: loaded.append(args) or Talker())
    plugin.register()
    plugin.register()  # the entry point has registered it already, when lmms-eval was imported
    made = stub["lmms_eval.models"].MODEL_REGISTRY_V2.get_model_class("tubelet")
    assert made is plugin.TubeletLmms
    given = {"batch_size": "1", "max_batch_size": None, "device": "cpu"}
    model = made.create_from_arg_string("pretrained=some/model", given)
    assert loaded == [("some/model", "cpu", None)] and (model.rank, model.world_size) == (0, 1)
    assert model.batch_size == 1
    video = str(make_video(tmp_path / "a.mp4", 4))
    model.task_dict = {"t": {"test": [{"visual": [video]}]}}
    assert model.generate_until(requests(model.task_dict, ("Q", 0))) == ["a.mp4|Q|16"]
    assert len(model.cache_hook.kept) == 1
    for method in (model.loglikelihood, model.generate_until_multi_round, model.generate_until_agentic):
        with pytest.raises(ModelError, match="tubelet model answers"):
            method([])
    with pytest.raises(ModelError, match="--batch_size is a number"):
        made(batch_size="auto")
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


@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
def test_the_real_registry_takes_the_model() -> None:
    import lmms_eval.models as models
    from lmms_eval.api.instance import Instance as Request
    from lmms_eval.api.model import lmms

    plugin.model_class.cache_clear()
    plugin.register()
    made = models.get_model("tubelet")
    assert issubclass(made, lmms) and made.is_simple and not made.__abstractmethods__
    meta = {"task": "t", "doc_id": 0, "repeats": 1}
    shown = lambda doc: doc["visual"]  # noqa: E731 - a callable, as tasks have it
    request = Request("generate_until", ("Q", {"until": ["\n"]}, shown, 0, "t", "test"), 0, meta)
    tasks = {"t": {"test": [{"visual": [Image.new("RGB", (8, 6))] * 3}]}}
    assert plugin.answer_requests(Talker(), tasks, [request]) == ["3 frames of 8 x 6|Q|64"]
    plugin.model_class.cache_clear()
