"""The command line: what it prints, how it fails. Errors are one sentence on stderr, never a traceback."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import video_files
from tubelet import cli
from tubelet.tube import Prediction, Span, Tube
from tubelet.video import open_video, sample_uniform
from tubelet.view.letters import lacking
from tubelet.world.files import make_world


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["tubelet", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, 1, seed=11, height=96, fps=10)
    return next(folder.glob("videos/*.mp4"))


def one_sentence(result: Result, *words: str) -> None:
    """Exit code not 0, nothing on stdout, one line on stderr that holds these words."""
    assert result.code == 1, result
    assert result.out == ""
    lines = [line for line in result.err.strip().splitlines() if line]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("tubelet: ")
    assert "Traceback" not in result.err
    for word in words:
        assert word in lines[0], (word, lines[0])


def test_ground_prints_a_line_per_sentence_and_writes_files(run, clip: Path, tmp_path: Path) -> None:
    answers, plot, out, sheet = (tmp_path / n for n in ("a.json", "t.png", "o.mp4", "s.png"))
    result = run(
        "ground", clip, "the red circle", "something spins",
        "--json", answers, "--plot", plot, "--out", out, "--sheet", sheet,
    )  # fmt: skip
    assert result.code == 0, result.err
    lines = result.out.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == ["the red circle", "something spins"]
    predictions = [Prediction.from_dict(p) for p in json.loads(answers.read_text())]
    assert [p.query for p in predictions] == ["the red circle", "something spins"]
    assert predictions[0].grid is not None and len(predictions[0].grid) == 16
    for path in (plot, out, sheet):
        assert path.stat().st_size > 500
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "o.mp4", "s.png", "t.png"]


def test_ground_image_is_rec(run, tmp_path: Path) -> None:
    make_world(tmp_path, 1, seed=1, tasks=("rec",), height=96)
    image = next(tmp_path.glob("images/*.png"))
    result = run("ground", image, "the red circle", "--json", tmp_path / "a.json")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "a.json").read_text())[0]["task"] == "rec"
    one_sentence(run("ground", image, "the red circle", "--task", "stvg"), "image", "rec")


def test_svg_takes_a_span(run, clip: Path) -> None:
    result = run("ground", clip, "the red circle", "--task", "svg", "--span", "0.5-2")
    assert result.code == 0, result.err
    assert "0.50-2.00 s" in result.out
    one_sentence(run("ground", clip, "the red circle", "--task", "svg", "--span", "2-1"), "START-END")
    result = run("ground", clip, "the red circle", "--task", "svg", "--span", "900-901")
    assert result.code == 1 and "outside the video" in result.out


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.mp4", None, ("missing.mp4",)),
        ("empty.mp4", b"", ("empty",)),
        ("text.mp4", b"this is a text, not a film\n" * 50, ("text.mp4",)),
    ],
)
def test_files_that_are_no_video(run, tmp_path: Path, name: str, content: bytes | None, words) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    one_sentence(run("ground", path, "the red circle", "--out", tmp_path / "o.mp4"), *words)
    one_sentence(run("info", path), *words)
    assert not (tmp_path / "o.mp4").exists()


def test_folder_truncated_and_audio_only(run, clip: Path, tmp_path: Path) -> None:
    one_sentence(run("ground", tmp_path, "x"), "folder")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes())
    one_sentence(run("ground", video_files.cut_off(cut, 0.3), "x"), "cut off")
    one_sentence(run("ground", video_files.audio_only(tmp_path / "sound.m4a"), "x"), "sound.m4a")


@pytest.mark.parametrize(
    ("sentence", "words"),
    [("", ("empty",)), ("   \n", ("empty",)), ("word " * 10_000, ("2000", "characters"))],
)
def test_sentences_that_cannot_be_asked(run, clip: Path, sentence: str, words) -> None:
    result = run("ground", clip, sentence)
    assert result.code == 1
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err + result.out


def test_a_very_long_sentence_does_not_hide_what_is_wrong_with_it(run, clip: Path) -> None:
    result = run("ground", clip, "word " * 10_000)
    assert result.code == 1 and len(result.out) < 500 and "failed: the sentence has" in result.out


def test_a_task_without_words_is_called_by_its_name() -> None:
    failed = Prediction("v", "", "elc", failure="no span was given")
    assert cli.grounding.describe(failed) == "elc: failed: no span was given"


def test_bytes_that_are_no_text(run, clip: Path, tmp_path: Path) -> None:
    """Python hands bytes of the command line that are no UTF-8 over as half surrogates."""
    one_sentence(run("ground", clip, "the red \udcff circle"), "character 9", "UTF-8")
    one_sentence(run("ask", clip, "what \udcff?"), "character 6", "UTF-8")
    odd = tmp_path / "clip\udcff.mp4"
    odd.write_bytes(clip.read_bytes())
    result = run("ground", odd, "the red circle", "--json", tmp_path / "a.json")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))[0]["video"] == str(odd)


def test_a_stdout_that_knows_fewer_letters(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    monkeypatch.setattr(sys, "argv", ["tubelet", "ground", str(clip), "红色的圆圈"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    sys.stdout.flush()
    assert stop.value.code == 0 and written.getvalue().startswith(rb"\u7ea2\u8272")


def test_other_scripts_and_emoji(run, clip: Path, tmp_path: Path) -> None:
    plot = tmp_path / "t.png"
    asked = ("红色的圆圈", "🔴 😀", "الدائرة الحمراء")
    result = run("ground", clip, *asked, "--plot", plot)
    assert result.code == 0, result.err
    assert "红色的圆圈" in result.out and "🔴" in result.out
    assert plot.exists()
    squares = lacking(" ".join(asked))  # depends on the fonts of this machine
    assert ("no font at hand has " in result.err) == bool(squares) and squares[:30] in result.err


def test_a_sheet_shows_every_tube(clip: Path) -> None:
    """A span between two of the evenly spread frames gets a frame of its own."""
    video = open_video(clip)
    even = sample_uniform(video, 16)
    short = Tube(Span(float(even.times_s[3]) + 0.05, float(even.times_s[4]) - 0.05))
    long = Tube(Span(0.0, 2.0))
    predictions = [Prediction("v", "q", "tvg", (tube,)) for tube in (long, short)]
    grid = cli.grounding._sheet_frames(video, predictions)
    assert len(grid) == 17 and set(even.frame_index) < set(grid.frame_index)
    assert cli.grounding._sheet_frames(video, predictions[:1]) == even
    last = Tube(Span(video.duration_s - 0.01, video.duration_s + 3))
    assert len(cli.grounding._sheet_frames(video, [Prediction("v", "q", "tvg", (last,))])) >= 16


def test_models_that_do_not_exist(run, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_sentence(run("ground", clip, "x", "--model", "no-such-model"), "no-such-model", "spacevllm-pico")
    one_sentence(run("ground", clip, "x", "--model", tmp_path), "config.json")
    file = tmp_path / "weights.bin"
    file.write_bytes(b"1")
    one_sentence(run("ground", clip, "x", "--model", file), "folder")


def test_options_of_attention_over_proposals(run, clip: Path, tmp_path: Path) -> None:
    """They choose the method's own default model, and are never ignored."""
    for option in (("--quality",), ("--proposals", "motion"), ("--quality", "-m", "spacevllm-pico")):
        one_sentence(run("ground", clip, "the red circle", *option), option[0], "--method zero-shot")
    one_sentence(
        run("ground", clip, "the red circle", "--method", "zero-shot", "-m", "spacevllm-pico"),
        "spacevllm-pico holds",
    )
    one_sentence(
        run("ground", clip, "the red circle", "--method", "zero-shot", "--proposals", "guessing"),
        "guessing",
        "motion",
    )
    plain, tuned = tmp_path / "plain.json", tmp_path / "tuned.json"
    words = ("ground", clip, "the red circle", "--method", "zero-shot")
    assert run(*words, "--json", plain).code == 0
    assert run(*words, "--quality", "--json", tuned).code == 0
    told = [json.loads(path.read_text())[0] for path in (plain, tuned)]
    assert [t["provenance"]["model"] for t in told] == ["pico-base"] * 2
    assert [t["provenance"]["consistency"] is None for t in told] == [True, False]  # of the reversed video


# --- the zero-shot route -----------------------------------------------------------------------------

ZERO_SHOT_OPTIONS = (
    ("--proposals", "motion"),
    ("--proposals-file", "tracks.json"),
    ("--phrase", "person"),
    ("--quality",),
    ("--preset", "paper"),
    ("--set", "k=3"),
    ("--provider-set", "fps=4"),
    ("--cache", "kept"),
    ("--split", "model"),
    ("--endpoint", "http://127.0.0.1:9/v1", "--endpoint-model", "m"),
    ("--max-frame-tokens", "36"),
)


@pytest.mark.parametrize("option", ZERO_SHOT_OPTIONS, ids=lambda option: option[0])
def test_an_option_of_the_zero_shot_route_is_never_ignored(run, clip: Path, option: tuple[str, ...]) -> None:
    one_sentence(run("ground", clip, "the red circle", *option), option[0], "add --method zero-shot")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What `load_zero_shot` is called with; nothing is loaded."""
    import inspect

    from tubelet.errors import ModelError
    from tubelet.zeroshot import grounder

    calls: list[dict[str, object]] = []
    parameters = inspect.signature(grounder.load_zero_shot)

    def load_zero_shot(*args: object, **more: object) -> None:
        bound = parameters.bind(*args, **more)
        bound.apply_defaults()
        calls.append({**bound.arguments, **bound.arguments["proposal_settings"]})
        raise ModelError("no model today")

    monkeypatch.setattr(grounder, "load_zero_shot", load_zero_shot)
    return calls


def test_every_option_of_the_zero_shot_route_arrives(run, clip: Path, loaded, tmp_path: Path) -> None:
    from tubelet.endpoint import Endpoint
    from tubelet.grounder import find_model

    base = find_model("pico-base")  # stands for any model that is there
    words = (
        "ground", clip, "the red circle", "--method", "zero-shot", "--model", base, "--proposals", "owlv2",
        "--phrase", "person", "--phrase", "red ball", "--quality", "--preset", "published", "--device", "cpu",
        "--dtype", "bfloat16", "--set", "k=3", "--set", "layers=[-4, -1]", "--set", "assemble=false",
        "--provider-set", f"model={base}", "--provider-set", "threshold=0.2", "--provider-set", "fps=4",
        "--cache", tmp_path / "kept", "--endpoint", "http://127.0.0.1:9/v1", "--endpoint-model", "splitter",
        "--max-frame-tokens", 36,
    )  # fmt: skip
    one_sentence(run(*words), "no model today")
    (call,) = loaded
    assert call["model"] == str(base) and call["proposals"] == "owlv2"
    assert call["phrases"] == ["person", "red ball"] and call["threshold"] == 0.2 and call["fps"] == 4
    assert call["proposal_model"] == str(base) and call["preset"] == "published"
    # what --set says goes before what --quality switches on
    assert call["settings"] == {
        "spatial": True, "temporal": True, "assemble": False, "k": 3, "layers": [-4, -1],
    }  # fmt: skip
    assert (call["device"], call["dtype"], call["max_frame_tokens"]) == ("cpu", "bfloat16", 36)
    assert call["cache"] == str(tmp_path / "kept")
    assert call["split"] == Endpoint("http://127.0.0.1:9/v1", "splitter")
    one_sentence(run("ground", clip, "x", "--method", "zero-shot", "--split", "model"), "no model today")
    assert (
        loaded[1]["split"] == "model" and loaded[1]["settings"] == {} and loaded[1]["proposals"] == "motion"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--set", "kk=3"), ("no field kk", "token_offset")),
        (("--set", "token=loud"), ("token is one of",)),
        (("--set", "k"), ("key=value",)),
        (("--preset", "best"), ("presets are tubelet",)),
        (("--provider-set", "kk=3"), ("no field kk", "short_side")),
        (("--provider-set", "phrases=[dog]"), ("--phrase",)),
        (("--provider-set", "device=cpu"), ("--device",)),
        (("--provider-set", "fps=fast"), ("fps of a provider",)),
        (("--provider-set", "settings=1"), ("no field settings",)),
        (("--proposals", "files"), ("--proposals-file",)),
        (("--proposals", "world-truth"), ("world-truth",)),
        (("--proposals", "motion", "--proposals-file", "t.json"), ("t.json", "motion")),
        (("--endpoint", "http://127.0.0.1:9/v1"), ("--endpoint-model",)),
        (("--endpoint-model", "m"), ("--endpoint URL",)),
        (("--endpoint", "127.0.0.1:9", "--endpoint-model", "m"), ("http://",)),
        (("--split", "model", "--endpoint", "http://x/v1", "--endpoint-model", "m"), ("not by both",)),
        (("--split", "guess"), ("guess", "--endpoint")),
        (("--dtype", "int8"), ("int8", "bfloat16")),
    ],
    ids=lambda value: " ".join(value),
)
def test_options_of_the_zero_shot_route_that_make_no_sense(
    run, clip: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    from tubelet.mllm import loading

    def network(*args: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "_network", network)
    one_sentence(run("ground", clip, "the red circle", "--method", "zero-shot", *options), *words)


def test_proposals_out_of_files_and_choices_that_win(run, clip: Path, tmp_path: Path) -> None:
    """Our own tracks, and MOT text; what answers is said on stderr; a choice goes before the model's folder."""
    from tubelet.proposals import propose_tracks, save_tracks

    tracks = propose_tracks("motion", clip)
    save_tracks(tracks, tmp_path / f"{clip.stem}.json")
    size = tracks.grid
    lines = [
        f"{size.frame_index[k] + 1},{n + 1},{1 + x0 * size.width},{1 + y0 * size.height},"
        f"{(x1 - x0) * size.width},{(y1 - y0) * size.height}"
        for n, track in enumerate(list(tracks)[:2])
        for k, (x0, y0, x1, y1) in enumerate(track.boxes_xyxy.tolist())
        if track.visible[k]
    ]
    (tmp_path / "mot.txt").write_text("\n".join(lines))
    words = ("ground", clip, "the red circle", "--method", "zero-shot", "--json", tmp_path / "a.json")
    words += ("--set", "absent_below=0")

    def asked(*more: object) -> tuple[Result, dict[str, object]]:
        result = run(*words, *more)
        assert result.code == 0, result.err
        return result, json.loads((tmp_path / "a.json").read_text())[0]

    plain, by_motion = asked()
    assert plain.err == f"pico-base, zero-shot, {len(tracks)} motion proposals\n"
    kept, of_file = asked("--proposals-file", tmp_path / "{stem}.json")
    assert kept.err == f"pico-base, zero-shot, {len(tracks)} files proposals\n"
    assert (of_file["provenance"]["proposals"], of_file["provenance"]["n_proposals"]) == (
        "files",
        len(tracks),
    )
    assert len(of_file["tubes"]) == 1 and by_motion["tubes"]
    two, _ = asked("--proposals", "files", "--proposals-file", tmp_path / "mot.txt")
    assert two.err.startswith("pico-base, zero-shot, 2 files proposals")
    _, three = asked("--set", "frames=3", "--set", "token=mean")
    assert len(three["grid"]["frame_index"]) == 3 < len(by_motion["grid"]["frame_index"])
    assert three["provenance"]["token"] != by_motion["provenance"]["token"]


def test_strange_footage_zero_shot_gets_advice_that_helps(run, tmp_path: Path) -> None:
    from tubelet.video import write_video

    noise = np.random.default_rng(0).integers(0, 255, (20, 90, 160, 3), dtype=np.uint8)
    path = write_video(tmp_path / "noise.mp4", list(noise), 10)
    result = run("ground", path, "a man who sits down", "--method", "zero-shot")
    assert "toy world" in result.err and "SpaceVLLM" not in result.err
    assert "--model Qwen/Qwen2.5-VL-7B-Instruct --proposals grounding-dino-sam2" in result.err
    assert result.err.startswith("pico-base, zero-shot, ")


def test_the_study_runs_what_was_chosen(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a choice is the default; what was not chosen follows the model's folder."""
    from tubelet.zeroshot import study as module
    from tubelet.zeroshot.settings import QUESTION, ZeroShotSettings
    from tubelet.zeroshot.study import Study

    seen: list[ZeroShotSettings] = []

    def study(grounder, *args: object) -> Study:
        seen.append(grounder.settings)
        return Study({"mean": {}}, 2, {"mean": 0}, {})

    monkeypatch.setattr(module, "study", study)
    words = ("study", "zero-shot", "--out", tmp_path / "study", "--n", 2)
    for more in (
        (),
        ("--token", "relative", "--question", QUESTION, "--epsilon", "1e-4"),
        ("--preset", "published"),
        ("--preset", "published", "--token", "relative", "--layers", "-4,-1", "--rate", "0"),
    ):
        result = run(*words, *more)
        assert result.code == 0, result.err
    of_folder, chosen, published, mixed = seen
    assert of_folder.token == "raw" and of_folder.question != QUESTION and of_folder.layers == (3, 4)
    assert (chosen.token, chosen.question, chosen.epsilon) == ("relative", QUESTION, 1e-4)
    assert chosen.layers == of_folder.layers and chosen.general == of_folder.general
    assert (published.token, published.layers, published.question) == ("fixed", (-26, -6), of_folder.question)
    assert (mixed.token, mixed.layers, mixed.rate, mixed.interval) == ("relative", (-4, -1), 0.0, "window")
    assert not any(s.spatial or s.temporal or s.assemble for s in seen)
    one_sentence(run(*words, "--layers", "four"), "FIRST,LAST")


def test_eval_zero_shot(run, tmp_path: Path) -> None:
    """Its options belong to the run: other ones do not go on with its answers."""
    words = ("eval", "world", "--n", 2, "--seed", 5, "--out", tmp_path / "run", "--method", "zero-shot")
    result = run(*words, "--set", "frames=4")
    assert result.code == 0, result.err
    assert "pico-base" in result.out and json.loads((tmp_path / "run/metrics.json").read_text())["n"] == 2
    header = json.loads((tmp_path / "run/predictions.jsonl").read_text().splitlines()[0])["run"]
    assert header["model"] == "pico-base, zero-shot" and header["sampling"]["zero_shot"]["frames"] == 4
    one_sentence(run(*words, "--set", "frames=4", "--quality"), "another run")
    one_sentence(
        run("eval", "world", "--out", tmp_path / "x", "--quality"), "--quality", "--method zero-shot"
    )
    assert not (tmp_path / "x").exists()


def test_hub_id_while_offline(clip: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(clip.parent / "hub")}
    done = subprocess.run(
        [sys.executable, "-m", "tubelet", "ground", str(clip), "x", "--model", "somebody/something"],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    one_sentence(Result(done.returncode, done.stdout, done.stderr), "somebody/something", "offline")


def test_model_folder_with_wrong_tensors(run, clip: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    from tubelet.grounder import find_model

    source = find_model("spacevllm-pico")
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors.pop("space_decoder.box_head.2.bias")
    tensors["space_decoder.box_head.0.bias"] = np.zeros(3, dtype=np.float16)
    save_file(tensors, broken / "model.safetensors")
    one_sentence(
        run("ground", clip, "x", "--model", broken),
        "space_decoder.box_head.2.bias", "space_decoder.box_head.0.bias", "(3,)",
    )  # fmt: skip
    (broken / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:1000])
    one_sentence(run("ground", clip, "x", "--model", broken), "weights")
    (broken / "model.safetensors").unlink()
    one_sentence(run("ground", clip, "x", "--model", broken), "model.safetensors")


def test_unwritable_output(run, clip: Path, tmp_path: Path) -> None:
    one_sentence(run("ground", clip, "x", "--json", tmp_path / "no" / "a.json"), "does not exist")
    one_sentence(run("ground", clip, "x", "--out", tmp_path), "folder")
    one_sentence(run("world", "make", "/proc/nothing/here"), "/proc/nothing")


def test_outputs_that_make_no_sense_are_said_before_work_is_done(
    run, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No model is loaded, and nothing is written, not even what could be."""

    def loaded(*args: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("tubelet.grounder.load", loaded)
    image = tmp_path / "in.png"
    Image.new("RGB", (32, 32)).save(image)
    before = clip.read_bytes()
    twice = tmp_path / "a.png"
    one_sentence(run("ground", clip, "x", "--json", tmp_path / "a.json", "--out", tmp_path / "o.avi"), ".mp4")
    one_sentence(run("ground", image, "x", "--out", tmp_path / "o.mp4"), ".png", "o.mp4")
    one_sentence(run("ground", clip, "x", "--plot", tmp_path / "t.pdf"), ".svg", "t.pdf")
    one_sentence(run("ground", clip, "x", "--sheet", tmp_path / "s.gif"), ".png", "s.gif")
    one_sentence(run("ground", clip, "x", "--plot", twice, "--sheet", twice), "two outputs")
    one_sentence(run("ground", clip, "x", "--out", clip.parent / "." / clip.name), "the video that is read")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    one_sentence(run("ground", clip, "x", "--json", tmp_path / "a.json"), "not writable")
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"] and clip.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_full(run, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing fails half-way as on a full disk: a clear sentence, and no half-written file."""
    import errno

    from tubelet.video import write

    def full(self: object, rgb: object, time_s: object = None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write._Encoder, "write", full)
    result = run("ground", clip, "the red circle", "--out", tmp_path / "o.mp4")
    assert result.code == 1 and "disk is full" in result.err and "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_stdout_on_a_full_disk() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tubelet", "data", "list"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        )  # fmt: skip
    one_sentence(Result(done.returncode, "", done.stderr), "the output", "No space left on device")


def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path) -> None:
    target = tmp_path / "toys"
    process = subprocess.Popen(
        [sys.executable, "-m", "tubelet", "world", "make", str(target), "--n", "500"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a test run that was started in the background ignores Ctrl-C, and its children would too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    videos = target / "videos"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (videos.exists() and any(videos.glob("test-*.mp4"))):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "interrupted" in err
    assert not (target / "annotations.jsonl").exists()
    assert all(path.name.startswith("test-") for path in videos.iterdir())


def test_ctrl_c_before_the_command_runs(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(**options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", stopped)
    result = run("data", "list")
    assert (result.code, result.out, result.err) == (130, "", "tubelet: interrupted\n")


def test_note_on_footage_that_is_not_the_toy_world(run, tmp_path: Path) -> None:
    from tubelet.video import write_video

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (20, 90, 160, 3), dtype=np.uint8)
    path = tmp_path / "noise.mp4"
    write_video(path, list(noise), 10)
    result = run("ground", path, "a man who sits down")
    assert "toy world" in result.err and "--model" in result.err
    assert result.code == 0


def test_no_note_on_the_toy_world(run, clip: Path) -> None:
    assert "toy world" not in run("ground", clip, "the red circle").err


def test_corrupt_frames_in_the_middle(run, clip: Path, tmp_path: Path) -> None:
    """A few broken frames are counted and said; the answer is given all the same."""
    path = tmp_path / "corrupt.mp4"
    path.write_bytes(clip.read_bytes())
    video_files.corrupt_frames(path, range(8, 16))
    result = run("ground", path, "the red circle")
    assert result.code == 0, result.err
    assert "could not be decoded" in result.err and "Traceback" not in result.err
    assert result.out.startswith("the red circle: ")


def test_an_answer_about_footage_that_is_not_the_toy_world_says_so(run, clip: Path, tmp_path: Path) -> None:
    from tubelet.video import write_video

    noise = np.random.default_rng(0).integers(0, 255, (20, 90, 160, 3), dtype=np.uint8)
    path = write_video(tmp_path / "noise.mp4", list(noise), 10)
    question = "what shape is the red thing?"
    result = run("ask", path, question, "--model", "llava-st-pico")
    assert result.code == 0 and result.err.startswith("note: ") and "toy world" in result.err
    known = run("ask", clip, question, "--model", "llava-st-pico")
    assert known.code == 0 and known.err == "" and known.out.strip()


def test_info_is_json(run, clip: Path) -> None:
    info = json.loads(run("info", clip).out)
    assert info["n_frames"] > 10 and info["height"] == 96


def test_models_lists_the_embedded_ones(run) -> None:
    out = run("models").out
    assert out.splitlines()[0].startswith("spacevllm-pico") and "(default)" in out


def test_eval_writes_metrics_and_resumes(run, tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    first = run("eval", "world", "--n", 4, "--seed", 5, "--out", folder)
    assert first.code == 0, first.err
    report = json.loads((folder / "metrics.json").read_text())
    assert report["n"] == 4 and report["n_failed"] == 0
    assert {"m_tIoU", "m_vIoU", "vIoU@0.3", "vIoU@0.5", "sIoU"} <= set(report["metrics"])
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 5  # the run's header and one line per query
    # killed in the middle of a line: the whole lines are kept, the rest is asked again
    (folder / "predictions.jsonl").write_text("\n".join(lines[:3]) + '\n{"id": "half')
    second = run("eval", "world", "--n", 4, "--seed", 5, "--out", folder)
    assert second.code == 0, second.err
    again = json.loads((folder / "metrics.json").read_text())
    assert again["metrics"] == report["metrics"]
    one_sentence(run("eval", "world", "--n", 5, "--seed", 5, "--out", folder), "another run")


def test_eval_of_the_toy_world_takes_its_own_flags_only(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flag that would change nothing is refused; the device is heeded."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "eval"
    one_sentence(
        run("eval", "world", "--out", out, "--limit", 3, "--protocol", "vidstg"), "--protocol, --limit", "--n"
    )
    one_sentence(run("eval", "world", "--out", out, "--shard", "1/2"), "--shard")
    one_sentence(run("eval", "world", "--out", out, "--device", "cuda:3"), "cuda:3", "no GPU")
    assert not out.exists()


def test_unknown_benchmark_and_recipe(run, tmp_path: Path) -> None:
    one_sentence(run("eval", "nothing", "--out", tmp_path / "x"), "world")
    one_sentence(run("train", tmp_path / "no.yaml"), "no.yaml")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: x\nmodel: spacevllm\nstages: []\nspeed: 9\n")
    one_sentence(run("train", recipe), "speed")


def test_a_disk_that_is_full_when_a_checkpoint_is_due(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(*args: object, **options: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("tubelet.training.checkpoint.save_file", full)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: x\nmodel: pico-base\nworkers: 0\nspacevllm: {max_frames: 2, prompts: brief}\nlog_every: 9\n"
        "stages: [{name: a, steps: 1, data: [{batch: 1, questions: 1, frames: 2}]}]\n"
    )
    result = run("train", recipe, "--set", f"out={tmp_path / 'run'}")
    assert result.code == 1 and result.out == "" and "Traceback" not in result.err
    assert "tubelet: cannot write the checkpoint" in result.err and "No space left on device" in result.err
    (tmp_path / "file").write_text("in the way")
    one_sentence(run("train", recipe, "--set", f"out={tmp_path / 'file' / 'run'}"), "cannot make the folder")


# --- data ----------------------------------------------------------------------------------------


def test_data_check_says_what_is_there(run, tmp_path: Path) -> None:
    small = ("--n", "2", "--height", "48", "--fps", "5")
    assert run("world", "make", tmp_path / "toys", *small, "--task", "stvg, tvg").code == 0
    result = run("data", "check", "world", tmp_path / "toys")
    assert result.code == 0 and "2 records" in result.out
    next((tmp_path / "toys" / "videos").glob("*.mp4")).unlink()
    result = run("data", "check", "world", tmp_path / "toys", "--json")
    report = json.loads(result.out)
    assert result.code == 1 and report["dataset"] == "world"
    one_sentence(run("data", "check", "no-such-set", tmp_path), "no-such-set", "vidstg")
    names = run("data", "list").out.split()
    assert {"vidstg", "hcstvg-v2", "world"} <= set(names) and names == sorted(names)
