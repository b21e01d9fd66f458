"""The published schedule of the zero-shot method against ours: time, peak memory, and the same numbers out.

    python perf/zero_shot.py [--frame-tokens 36 196] [--repeats 1] [--layers 6] [--hidden 128] [--device cpu]
                             [--dtype float32] [--epochs 2] [--masks] [--only-cheap] [--threads 1] [--processor-time]

One random LLaVA-OneVision with the language model of pico-base in size (wider ones with `--hidden`), 20 frames of
noise, one sentence with two sub-queries, eight tracks. 36 tokens a frame are 720 visual tokens (the published setting),
196 are 3,920 (the model's own).

published  as the public code runs it, restated from notes on it:
           - space, reversed and time are tuned one after the other; every epoch generates ten words for the sub-query
             and ten for the general prompt over the whole prompt (transformers' `generate`, without its no_grad), with
             a graph of everything. The scores of all ten are returned and the first are used, so the graphs of all live
             so long;
           - both graphs of an epoch are kept (retain_graph), as a plain loop keeps them: until the next epoch's loss
             takes their place;
           - then each question generates again, for its map: five words in space, ten in time, 142 words' steps in
             all for two epochs. The maps of all layers are kept of every step; those of the prompt are stacked and
             concatenated (three copies at once), rows of all words after the video are cut out, layers and heads
             averaged, one row taken;
           - attention is eager everywhere. The video is encoded once for space and once for time, and questions are
             laid out and embedded anew for each forward. On a GPU the allocator is emptied after each forward;
           - weights keep requires_grad: no gradient of a weight is computed, but what it would need is kept;
           - the step with its average is written out again here, not taken from `tubelet.zeroshot.reattention`.
ours       `tubelet.zeroshot.method.choose` with the same settings: one prefix for all questions, packed, no words, no
           maps, the first epoch of space and time in one graph, no layer further than needed. It saves most of the
           last layer and, of a map, the layers behind those that are read: the more, the fewer layers there are.

With `--masks` both sides also score eight tracks by masks of 1280 x 720 in 20 frames, as the public code does: it
decodes all of them to full size and meets them with the map there; ours decodes one track at a time, and at full size
the chosen one only. Left out on both sides: decoding the video and, without `--masks`, masks (which weigh as much as a
small model). Left out of "published": loading the model three times (once a run, not a query), logits of other
positions than the last, and copies of masks.

Each side runs in a process of its own, in turns; times are medians of them. Memory is the peak of the resident set (of
torch's allocator on a GPU) above what was in use after the model was loaded, and the video encoded once to load what is
loaded late. "second" is the cheap mode's second sentence on a video that was read, as part of the first one's time
(encoding included).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from attention_rows import timed as timed_by_wall

_clock: dict[str, bool] = {"processor": False}
SENTENCE = "the red circle that spins and moves down"
FRAMES = 20
MASK_SIZE = (720, 1280)  # height, width
TUNING_WORDS, SPACE_WORDS, TIME_WORDS = 10, 5, 10  # written for a step, for a map of space, for one of time


def timed(call: Callable[[], Any], device: str) -> tuple[float, float, Any]:
    """Seconds, peak MB above what was in use before, and what came out."""
    gc.collect()
    if not device.startswith("cuda"):
        ctypes.CDLL(None).malloc_trim(0)  # what one schedule freed must not be there for the next one
    start = time.process_time()
    seconds, peak, out = timed_by_wall(call, device)
    return (time.process_time() - start if _clock["processor"] else seconds), peak, out


def build(args: argparse.Namespace, frame_tokens: int) -> Any:
    """A random LLaVA-OneVision with 27 x 27 patches a frame, as the 7B has, and the tokenizer of pico-base."""
    import torch
    from transformers import (
        AutoProcessor,
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    from tubelet.grounder import find_model
    from tubelet.mllm.attention_rows import use_row_attention
    from tubelet.mllm.llava import LLAVA_ONEVISION
    from tubelet.mllm.model import LoadedMllm

    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(find_model("pico-base"), local_files_only=True)
    ids = processor.tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=27 * 4,
        patch_size=4,
        vision_use_head=False,
    )
    heads = args.heads or args.hidden // 32
    text = Qwen2Config(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate or 3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=heads,
        num_key_value_heads=args.kv_heads or heads,
        max_position_embeddings=32768,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_token_index=ids[0],
        video_token_index=ids[1],
    )
    with torch.device(args.device):
        network = LlavaOnevisionForConditionalGeneration(config).to(getattr(torch, args.dtype))
    network.eval().requires_grad_(False)
    use_row_attention(network.model.language_model)
    capabilities = LLAVA_ONEVISION.capabilities(network, frame_tokens)
    return LoadedMllm("random", "0", LLAVA_ONEVISION, capabilities, network, processor, frame_tokens)


def make_clip() -> Any:
    from fractions import Fraction

    from tubelet.frames import Clip, FrameGrid

    pixels = np.random.default_rng(0).integers(0, 255, (FRAMES, 108, 108, 3), dtype=np.uint8)
    grid = FrameGrid(np.arange(FRAMES), np.arange(FRAMES) / 2, Fraction(2), FRAMES / 2, 108, 108)
    return Clip(pixels, grid)


class Published:
    """The public schedule on the same weights. `delta` (n_tokens, D) is added to the visual tokens."""

    def __init__(self, mllm: Any, settings: Any) -> None:
        self.mllm, self.settings = mllm, settings
        self.lm = mllm.model.model.language_model

    def generate(
        self, visual: Any, text: str, delta: Any, words: int, maps: bool
    ) -> tuple[list[Any], list[tuple[Any, ...]]]:
        """Scores (V,) of each word, and the maps of each step: (1, H, N, N) per layer, then (1, H, 1, N + k)."""
        import torch
        from transformers import GenerationConfig

        layout = self.mllm.prompt(visual, text)
        ids = torch.from_numpy(layout.input_ids).to(self.mllm.device)
        where = torch.from_numpy(np.concatenate([layout.visual, layout.trailing])).to(self.mllm.device)
        tokens = (visual.tokens.float() + delta).to(self.mllm.dtype)
        given = self.mllm.model.get_input_embeddings()(ids).index_copy(0, where, tokens)[None]
        generate = type(self.mllm.model).generate.__wrapped__  # as decorated, it makes no graph
        out = generate(
            self.mllm.model,
            inputs_embeds=given,
            attention_mask=torch.ones(given.shape[:2], dtype=torch.long, device=given.device),
            generation_config=GenerationConfig(
                max_new_tokens=words,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
                output_attentions=maps,
            ),
        )
        if self.mllm.device.type == "cuda":
            torch.cuda.empty_cache()
        return [score[0].float() for score in out.scores], list(out.attentions or ())

    def gap(self, visual: Any, text: str, delta: Any) -> Any:
        """Logit of yes minus that of no, of the first of ten words."""
        from tubelet.zeroshot.reattention import yes_no_ids

        (yes,), (no,) = yes_no_ids(self.mllm.tokenizer, "exact")
        scores, _ = self.generate(visual, text, delta, TUNING_WORDS, False)
        return scores[0][yes] - scores[0][no]

    def tune(self, visual: Any, sub_query: str) -> Any:
        """The prompt in force after all epochs: steps on the newer one, the mean of the last two is used."""
        import torch

        share = self.settings.averaging
        newer = torch.zeros(visual.tokens.shape, dtype=torch.float32, device=visual.tokens.device)
        older = None
        for _ in range(self.settings.epochs):
            newer = newer.detach().requires_grad_()
            delta = newer if older is None else share * newer + (1 - share) * older
            positive = self.gap(visual, sub_query, delta)
            loss = 1 - (positive - self.gap(visual, self.settings.general, delta))
            (gradient,) = torch.autograd.grad(loss, newer, retain_graph=True)
            older, newer = newer.detach(), newer.detach() - self.settings.rate * gradient
        return newer if older is None else share * newer + (1 - share) * older

    def tuned_map(self, visual: Any, sub_query: str, words: int) -> Any:
        import torch

        with torch.enable_grad():
            delta = self.tune(visual, sub_query)
        with torch.no_grad():
            return self.read(visual, sub_query, delta, words)

    def read(self, visual: Any, question: str, delta: Any, words: int) -> Any:
        from tubelet.zeroshot.maps import relative

        rows = [self.row(visual, text, delta, words) for text in (question, self.settings.general)]
        return relative(rows[0], rows[1], self.settings.epsilon)

    def row(self, visual: Any, text: str, delta: Any, words: int) -> Any:
        """(T, h, w): attention of the chosen word to the video, mean over the chosen layers, then over heads."""
        import torch

        from tubelet.zeroshot.maps import layer_range

        layout = self.mllm.prompt(visual, text)
        layers = list(layer_range(self.settings.layers, self.mllm.capabilities.n_layers) or ())
        _, steps = self.generate(visual, text, delta, words, True)
        stacked = [torch.stack(step) for step in steps if step[0].shape[-2] == len(layout)]
        maps = torch.cat(stacked, dim=1)[:, 0]  # (L, H, N, N)
        cells = torch.from_numpy(layout.visual).to(maps.device)
        after = maps[:, :, layout.prefix_length - 1 :][..., cells]  # (L, H, words after the video, T * h * w)
        taken = after[:, :, self.settings.token_offset]
        mean = (taken[layers] if layers else taken).float().mean(0).mean(0)
        return mean.unflatten(0, visual.grid.shape).double().cpu().numpy()

    def run(self, clip: Any, attribute: str, action: str) -> tuple[Any, Any]:
        """(space, time): the assembled spatial map and the temporal one."""
        self.lm.set_attn_implementation("eager")
        self.mllm.model.requires_grad_(True)
        try:
            visual = self.mllm.encode(clip)
            space = self.tuned_map(visual, attribute, SPACE_WORDS)
            space = space + self.tuned_map(visual.flipped(), attribute, SPACE_WORDS)[::-1]
            return space, self.tuned_map(self.mllm.encode(clip), action, TIME_WORDS)
        finally:
            from tubelet.mllm.attention_rows import ROW_ATTENTION

            self.lm.set_attn_implementation(ROW_ATTENTION)
            self.mllm.model.requires_grad_(False)


def make_tracks() -> Any:
    """Eight discs that move, as run lengths of 1280 x 720 masks: what a provider left on disk."""
    from fractions import Fraction

    from tubelet.frames import FrameGrid
    from tubelet.proposals import Track, Tracks
    from tubelet.proposals.rle import encode

    height, width = MASK_SIZE
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:height, :width]
    out = []
    for number in range(8):
        radius, start, step = rng.integers(60, 160), rng.uniform(200, 500, 2), rng.uniform(-8, 8, 2)
        centres = start + step * np.arange(FRAMES)[:, None]
        masks = [encode((x - cx) ** 2 + (y - cy) ** 2 <= radius**2) for cx, cy in centres]
        boxes = np.concatenate([centres - radius, centres + radius], axis=1) / [width, height, width, height]
        out.append(
            Track(number, np.clip(boxes, 0, 1), np.ones(FRAMES, dtype=bool), 1.0, None, tuple(masks), None)
        )
    grid = FrameGrid(np.arange(FRAMES), np.arange(FRAMES) / 2, Fraction(2), FRAMES / 2, width, height)
    return Tracks(grid, tuple(out))


def published_scores(space: Any, when: Any, tracks: Any) -> tuple[Any, Any]:
    """Scores per track and per frame of the best one: every mask of every track decoded and kept at full size, resized
    to the cells for the one, and the map brought to full size under all of them for the other."""
    import torch
    import torch.nn.functional as F

    from tubelet.proposals.rle import decode

    full = torch.from_numpy(np.stack([decode(mask) for track in tracks for mask in track.masks])).float()
    full = full.unflatten(0, (len(tracks), -1))
    cells = F.interpolate(full, size=space.shape[1:], mode="bilinear", align_corners=False)
    scores = (torch.from_numpy(space).float() * cells).amax((1, 2, 3))
    large = F.interpolate(
        torch.from_numpy(when)[None].float(), MASK_SIZE, mode="bilinear", align_corners=False
    )
    frames = (large * full).amax((2, 3))
    return scores.numpy(), frames[int(scores.argmax())].numpy()


def full_method(
    mllm: Any, clip: Any, settings: Any, masks: bool = False
) -> dict[str, Callable[[], tuple[Any, Any]]]:
    """Both schedules as functions that return scores per track and per frame."""
    from tubelet.zeroshot.decompose import by_rules, question_of
    from tubelet.zeroshot.method import choose
    from tubelet.zeroshot.regions import scores_per_frame, track_weights
    from tubelet.zeroshot.scoring import frame_scores, track_scores

    parts = by_rules(SENTENCE)
    assert parts.attribute and parts.action
    attribute, action = (question_of(text, settings.question) for text in (parts.attribute, parts.action))
    shape = mllm.grid_of(clip).shape
    tracks = make_tracks() if masks else None
    random = (np.random.default_rng(1).random((8, *shape)) < 0.2).astype(np.float64)

    def published() -> tuple[Any, Any]:
        space, when = Published(mllm, settings).run(clip, attribute, action)
        if tracks is not None:
            return published_scores(space, when, tracks)
        scores = track_scores(space, random)
        return scores, frame_scores(when, random)[int(scores.argmax())]

    def ours() -> tuple[Any, Any]:
        visual = mllm.encode(clip)
        weights = random if tracks is None else track_weights(tracks, shape[1:], settings)

        def frames_of(relative_map: Any, row: int) -> Any:
            if tracks is not None:
                return scores_per_frame(relative_map, tracks, row, weights, settings)
            return frame_scores(relative_map, weights)[row]

        found = choose(mllm, visual, None, weights, SENTENCE, parts, settings, frames_of)
        return found.scores, found.frame_scores

    return {"published": published, "ours": ours}


def one(args: argparse.Namespace) -> dict[str, Any]:
    """One run of one side in this process."""
    from tubelet.zeroshot.settings import preset

    mllm, clip = build(args, args.frame_tokens[0]), make_clip()
    n_layers = mllm.capabilities.n_layers
    settings = replace(
        preset("published"),
        layers=(n_layers // 14, -max(1, n_layers // 5)),  # the middle ones, as 6 to 25 of 32 are
        as_published=False,
        epochs=args.epochs,
        rate=args.rate,
    )
    call = full_method(mllm, clip, settings, args.masks)[args.one]
    read_once(mllm, clip)
    seconds, peak, (scores, frames) = timed(call, args.device)
    if (
        seconds < 30
    ):  # memory is of the first call, time of the second: the first one loads what is left to load
        seconds = timed(call, args.device)[0]
    return {"seconds": seconds, "peak_mb": peak, "scores": scores.tolist(), "frames": frames.tolist()}


def read_once(mllm: Any, clip: Any) -> None:
    import torch

    from tubelet.zeroshot.method import read_map
    from tubelet.zeroshot.settings import ZeroShotSettings

    with torch.no_grad():
        visual = mllm.encode(clip)
        read_map(mllm, visual, None, "Is there a circle in this video?", ZeroShotSettings())


def child(args: argparse.Namespace, name: str, tokens: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, "--frame-tokens", str(tokens)]
    for option in ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocabulary", "epochs", "rate"):
        command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    command += ["--threads", str(args.threads), "--device", args.device, "--dtype", args.dtype]
    command += ["--processor-time"] if args.processor_time else []
    command += ["--masks"] if args.masks else []
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return found


def compare(args: argparse.Namespace, tokens: int) -> None:
    names = ("published", "ours")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(args.repeats):
        for name in names:
            runs[name].append(child(args, name, tokens))
    seconds, peaks = (
        {name: statistics.median(run[key] for run in runs[name]) for name in names}
        for key in ("seconds", "peak_mb")
    )
    for name in names:
        print(f"  full method, {name:9} {seconds[name]:8.3f} s  {peaks[name]:9.1f} MB")
    faster, lighter = (kind["published"] / max(kind["ours"], 1e-9) for kind in (seconds, peaks))
    first, last = (runs[name][-1] for name in names)
    off = max(float(np.abs(np.divide(last[k], first[k]) - 1).max()) for k in ("scores", "frames"))
    print(
        f"  {faster:.1f} x faster, {lighter:.1f} x less memory; scores differ by at most {off:.1e} of themselves",
        flush=True,
    )
    assert off < 1e-3 or args.dtype != "float32", "the two do not compute the same"


def cheap(mllm: Any, clip: Any, args: argparse.Namespace) -> None:
    """The default mode: reading a video and one sentence; then another sentence."""
    from tubelet.zeroshot.method import read_map
    from tubelet.zeroshot.settings import ZeroShotSettings

    kept: dict[str, Any] = {}

    def first() -> Any:
        kept["visual"] = mllm.encode(clip)
        kept["prefix"] = mllm.prefix(kept["visual"])
        return second("Is there the red circle in this video?")

    def second(question: str = "Is there the blue star that spins in this video?") -> Any:
        return read_map(mllm, kept["visual"], kept["prefix"], question, ZeroShotSettings())

    import torch

    with torch.no_grad():
        first(), second()
        runs = [
            (timed(first, args.device)[0], timed(second, args.device)[0]) for _ in range(max(3, args.repeats))
        ]
    a, b = (statistics.median(x) for x in zip(*runs, strict=True))
    print(
        f"  cheap mode, first sentence {a:.3f} s, second {b:.3f} s: {100 * b / a:.1f} % of the first",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frame-tokens", type=int, nargs="+", default=[36, 196])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--intermediate", type=int, default=0, help="0: 3 times hidden")
    parser.add_argument("--heads", type=int, default=0, help="0: hidden / 32")
    parser.add_argument("--kv-heads", type=int, default=0, help="0: as many as heads")
    parser.add_argument("--vocabulary", type=int, default=576)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--masks", action="store_true", help="tracks have masks of 1280 x 720, as published")
    parser.add_argument("--only-cheap", action="store_true")
    parser.add_argument("--processor-time", action="store_true", help="for busy machines; with --threads 1")
    parser.add_argument(
        "--one", choices=("published", "ours"), help="run one side, print JSON (used by itself)"
    )
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    _clock["processor"] = args.processor_time
    if args.one:
        print(json.dumps(one(args)))
        return
    clip = make_clip()
    for tokens in args.frame_tokens:
        mllm = build(args, tokens)
        n = mllm.grid_of(clip).n_cells
        size = sum(p.numel() for p in mllm.model.parameters()) / 1e6
        print(
            f"{n} visual tokens, {args.layers} layers, width {args.hidden}, {size:.0f} M parameters, "
            f"{args.dtype}, {args.device}, median of {args.repeats}"
        )
        cheap(mllm, clip, args)
        if not args.only_cheap:
            del mllm
            compare(args, tokens)


if __name__ == "__main__":
    main()
