"""Ground thousands of (video, sentence) pairs: a job over a ledger, which may be killed at any moment and resumed.

    result = ground_pairs("pairs.jsonl", "out", BatchSettings(model="spacevllm-pico", workers=2))

An item of the job is one video with all its pairs, so that each video is decoded and encoded once; a part is one pair,
named by its id. `scale.pairs` says what is read, `scale.grounding_step` what a worker does. In the folder:

    ledger.sqlite      what is to do, done, set aside
    predictions.jsonl  one line per pair, {"id", "prediction"}, written when the job is through
    job.json           the card: model, versions, settings, counts, failures by reason
    overlays/          annotated videos, where they were asked for

predictions.jsonl is a function of the pairs, the videos, the model and the settings: not of workers, kills or order of
work. Every pair gets a line; one whose video was set aside is a failed prediction with the reason.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from tubelet.config_io import from_dict, load_yaml, to_dict, with_overrides
from tubelet.errors import DataError, ModelError, OutputError, RecipeError
from tubelet.scale.grounding_output import KEPT_BAD, STAGE, BatchResult, write_card, write_predictions
from tubelet.scale.job import Job, Report, Stage
from tubelet.scale.ledger import Ledger, Part, open_ledger
from tubelet.scale.pairs import BATCH_TASKS, BadLine, file_digest, folder_of, iter_pairs
from tubelet.zeroshot.options import OPTION_FIELDS, check_options, means_zero_shot, options_from

LEDGER = "ledger.sqlite"

_STEP = "tubelet.scale.grounding_step:make_grounding"
_RAY = "tubelet.scale.ray_engine"  # imported only when asked for: run_ray(job, ledger, report)


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How pairs are grounded; the fields are the flags of `tubelet batch` and the keys of its YAML.

    Args:
        model, method, device, dtype: as for `tubelet.load`; "" for its default.
        task: for pairs without one; "": stvg, rec for an image.
        span_reader: text, activity or both; "": the model's own.
        proposals, proposals_file, phrases, preset, quality, zero_shot, provider, cache, split, endpoint,
            endpoint_model, max_frame_tokens: of the zero-shot method, as `zeroshot.options.ZeroShotOptions` takes them.
            A file of proposals is usually a pattern ("tracks/{stem}.json"); workers may share a cache.
        videos: folder that relative paths of videos belong to; "": that of the pairs.
        engine: "local" (processes of this machine) or "ray" (a cluster).
        workers: processes, each with a model of its own.
        threads: CPU threads of each; sums depend on it in their last bits, so it stays what it is in a resumed job.
        cpus, gpus: what a worker reserves on a Ray cluster; of local workers gpus says how many GPUs each one sees.
        order: of predictions.jsonl: "input", or "video" (those of a video together).
        overlays: "": none; "video": an annotated copy of each video; "question": one for each pair.
        max_tries: a video that fails so often is set aside. item_timeout_s: one that takes longer counts as failed.
        lease_s: so does one whose worker gives no sign of life for so long.
        skip_bad_lines: leave out lines that are no pairs and repeated ids, counted, instead of stopping there.
    """

    model: str = ""
    method: str = ""
    device: str = ""
    dtype: str = ""
    task: str = ""
    span_reader: str = ""
    proposals: str = ""
    proposals_file: str = ""
    phrases: tuple[str, ...] = ()
    preset: str = ""
    quality: bool = False
    zero_shot: dict[str, Any] = field(default_factory=dict)
    provider: dict[str, Any] = field(default_factory=dict)
    cache: str = ""
    split: str = ""
    endpoint: str = ""
    endpoint_model: str = ""
    max_frame_tokens: int = 0
    videos: str = ""
    engine: str = "local"
    workers: int = 1
    threads: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    order: str = "input"
    overlays: str = ""
    max_tries: int = 3
    lease_s: float = 300.0
    item_timeout_s: float = 3600.0
    skip_bad_lines: bool = False

    def __post_init__(self) -> None:
        _one_of("engine", self.engine, ("local", "ray"))
        _one_of("order", self.order, ("input", "video"))
        _one_of("overlays", self.overlays, ("", "video", "question"))
        _one_of("method", self.method, ("", "zero-shot"))
        _one_of("span_reader", self.span_reader, ("", "text", "activity", "both"))
        _one_of("dtype", self.dtype, ("", "float32", "bfloat16", "float16"))
        _one_of("task", self.task, ("", *BATCH_TASKS))
        options_from(self)  # says itself what it cannot take
        for name in ("workers", "threads", "max_tries"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is at least 1, got {getattr(self, name)}")
        for name in ("lease_s", "item_timeout_s"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"{name} is above 0 s, got {getattr(self, name)}")
        if not (self.cpus >= 0 and self.gpus >= 0):
            raise RecipeError(f"cpus and gpus are at least 0, got {self.cpus}, {self.gpus}")


_DECIDES = (
    "method",
    "device",
    "dtype",
    "task",
    "span_reader",
    "threads",
    "overlays",
    *(name for name in OPTION_FIELDS if name != "cache"),
)
"""Settings that a result depends on; the others may change when a job is resumed."""


def load_batch_settings(path: Path | None, settings: Sequence[str] = ()) -> BatchSettings:
    """From a YAML file (None: the defaults) and key=value settings. Raises RecipeError."""
    return from_dict(BatchSettings, with_overrides({} if path is None else load_yaml(path), settings))


def ground_pairs(
    pairs: str | Path,
    out: str | Path,
    settings: BatchSettings | None = None,
    *,
    resume: bool = False,
    retry_aside: bool = False,
    report: Report | None = None,
) -> BatchResult:
    """Ground all pairs of a file into a folder.

    Args:
        resume: go on with the job that the folder holds (or begin, where it holds none).
        retry_aside: try videos again that were set aside earlier.
        report: told of the progress, in videos.

    Raises DataError for a file of pairs that cannot be used, a folder that holds a job and `resume` is not given, and
    a job of other pairs, model or settings; ModelError for a model or an engine that is not there, before any worker
    starts; OutputError where nothing can be written (the job can be resumed).
    """
    from tubelet.grounder import default_model

    settings = settings or BatchSettings()
    settings = replace(settings, model=settings.model or default_model(settings.method))
    settings = replace(  # workers may be elsewhere
        settings, proposals_file=_absolute(settings.proposals_file), cache=_absolute(settings.cache)
    )
    _check_method(settings)
    source, folder = Path(pairs), Path(out)
    engine = _engine(settings.engine)
    base = folder_of(settings.videos) if settings.videos else source.parent
    identity = _identity(source, base, settings)
    _make_folder(folder)
    fresh = _is_fresh(folder / LEDGER)
    if not fresh and not resume:
        raise DataError(
            f"{folder} holds a job already: go on with it by --resume, or give another folder for a new one"
        )
    with _opened(folder / LEDGER, fresh, source, base, settings, identity) as ledger:
        _check_same(ledger, identity, folder)
        if retry_aside:
            ledger.retry_aside()
        _remove_parts(folder)
        try:
            engine(_job(settings, folder), ledger, report)
        except OutputError as error:
            said = str(error)
            hint = (
                "" if "--resume" in said else "; what is done is kept: make space, then go on with --resume"
            )
            raise OutputError(said + hint) from error
        result = write_predictions(ledger, folder, settings.order == "input")
        write_card(ledger, folder, to_dict(settings), identity, result)
    return result


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        words = ", ".join(word or "left out" for word in known)
        raise RecipeError(f"{name} is one of: {words}; got {value!r}")


# --- before the work ---------------------------------------------------------------------------------


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute()) if path else ""


def _check_method(settings: BatchSettings) -> None:
    """Options of the zero-shot method are checked before any worker starts, and never ignored."""
    options = options_from(settings)
    if means_zero_shot(settings.model, settings.method):
        check_options(options, settings.model)
    elif given := options.given():
        raise RecipeError(f"{given[0]} is for attention over proposals: add the method zero-shot")


def _engine(name: str) -> Any:
    if name == "local":
        from tubelet.scale.local import run_local

        return run_local
    if importlib.util.find_spec("ray") is None:
        raise ModelError(
            "the engine ray needs Ray, which is not installed: pip install 'tubelet[scale]', or use --engine local"
        )
    try:
        return import_module(_RAY).run_ray
    except ImportError as error:
        raise ModelError(f"the engine ray cannot be loaded: {error}; use --engine local") from error


def _identity(source: Path, base: Path, settings: BatchSettings) -> dict[str, Any]:
    """All that results depend on, as it is compared when a job is resumed. Finds the model, loads nothing."""
    from tubelet.grounder import find_model, revision_of

    pairs = file_digest(source)
    model = find_model(settings.model)
    if not (model / "config.json").is_file():
        raise ModelError(f"{settings.model} is no model: the folder holds no config.json")
    named = {name: to_dict(getattr(settings, name)) for name in _DECIDES}
    return {
        "pairs": pairs,
        "videos": str(base.resolve()),
        "model": settings.model,
        "revision": revision_of(model),
        **named,
    }


def _check_same(ledger: Ledger, identity: Mapping[str, Any], folder: Path) -> None:
    before = json.loads(ledger.meta("identity") or "{}")
    # what an older version did not know of was not given
    other = [name for name, value in identity.items() if (before.get(name) or None) != (value or None)]
    if not other:
        return
    words = [
        "the file of pairs has changed"
        if name == "pairs"
        else f"{name} was {before.get(name) or 'not given'} and is {identity[name] or 'not given'}"
        for name in other
    ]
    raise DataError(
        f"{folder} holds another job: {'; '.join(words)}. Resume it with what it began with, "
        "or give another folder"
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def _is_fresh(path: Path) -> bool:
    """No ledger, or one whose filling was interrupted: then nothing has been done, and it is removed."""
    if not path.exists():
        return True
    with open_ledger(path) as ledger:
        filled = ledger.meta("filled") is not None
    if not filled:
        _remove_ledger(path)
    return not filled


def _remove_ledger(path: Path) -> None:
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _opened(
    path: Path, fresh: bool, source: Path, base: Path, settings: BatchSettings, identity: Mapping[str, Any]
) -> Ledger:
    """The ledger with all items in it; where that fails a new one is removed again."""
    ledger = open_ledger(path)
    if not fresh:
        return ledger
    filled = False
    try:
        bad = _fill(ledger, source, base, settings)
        ledger.set_meta("identity", json.dumps(identity, sort_keys=True))
        ledger.set_meta("bad_lines", json.dumps(bad))
        ledger.set_meta("filled", "yes")
        filled = True
    finally:
        if not filled:
            ledger.close()
            _remove_ledger(path)
    return ledger


def _fill(ledger: Ledger, source: Path, base: Path, settings: BatchSettings) -> dict[str, Any]:
    """Items from pairs, streamed; how many lines were left out, and the first of them. Raises DataError."""
    bad: list[BadLine] = []
    n_bad = n = 0

    def leave_out(line: BadLine) -> None:
        nonlocal n_bad
        n_bad += 1
        if len(bad) < KEPT_BAD:
            bad.append(line)

    def parts() -> Iterator[tuple[str, Part]]:
        nonlocal n
        told = leave_out if settings.skip_bad_lines else None
        for pair in iter_pairs(source, base, settings.task or None, told):
            n += 1
            yield _key(pair.path), Part(pair.line - 1, pair.id, pair.to_json())

    for twice in ledger.fill(parts()):
        line = BadLine(
            twice.place + 1,
            f"repeats the id {twice.key!r:.80} of line {twice.first + 1} (a pair without an id is named by what "
            "it asks)",
        )
        if not settings.skip_bad_lines:
            raise DataError(
                f"{source}, {line}; give each its own, or leave repeated lines out with --skip-bad-lines"
            )
        leave_out(line)
    if not n:
        raise DataError(f"{source} holds no pair" + (f": {n_bad} lines are bad, {bad[0]}" if bad else ""))
    bad.sort(key=lambda line: line.line)
    return {"count": n_bad, "first": [str(line) for line in bad]}


def _key(path: str) -> str:
    """A path as an item's key: the name of a file may be bytes that are no text."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _remove_parts(folder: Path) -> None:
    """Half-written pictures of workers that were killed. Only one driver is here: it holds the ledger."""
    for pattern in (".tubelet-*.part", ".*.part.png"):
        for part in (folder / "overlays").glob(pattern):
            part.unlink(missing_ok=True)


def _job(settings: BatchSettings, folder: Path) -> Job:
    model = Path(settings.model).expanduser()
    options = {
        "model": str(model.resolve()) if model.is_dir() else settings.model,
        "name": settings.model,
        **{name: to_dict(getattr(settings, name)) for name in (*_DECIDES, "cache") if name != "task"},
        "folder": str(folder.resolve()),
    }
    stage = Stage(STAGE, _STEP, options, settings.workers, settings.cpus, settings.gpus)
    return Job(
        "batch",
        (stage,),
        settings.max_tries,
        lease_s=settings.lease_s,
        item_timeout_s=settings.item_timeout_s,
    )
