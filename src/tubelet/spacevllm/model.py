"""SpaceVLLM as a torch module: a stock LLaVA-OneVision plus the space decoder.

The base is transformers' `LlavaOnevisionForConditionalGeneration`, unchanged: the query tokens are rows of
its own vocabulary, placed among the video placeholders, so the stock forward splices the picture features
around them (tests compare with it). This module adds the packed layout, the prefix cache and the decoder on
the last layer.

Two ways through it, equal within rounding:
  `forward(packed, ...)`            training: prefix and all suffixes in one pass, with gradients;
  `encode_prefix` + `ask`           inference: the prefix once, then any number of questions on its KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration
from transformers.cache_utils import DynamicCache

from tubelet.motion import MotionLayer, grid_side
from tubelet.packed import mask_for, read_packed, suffix_mask
from tubelet.spacevllm.answer_tree import AnswerTree
from tubelet.spacevllm.config import SpaceVLLMConfig
from tubelet.spacevllm.decoder import DecoderOutput, SpaceDecoder
from tubelet.spacevllm.dense import DoingHead, SeenHead
from tubelet.spacevllm.looking import attention_of
from tubelet.spacevllm.match import Match
from tubelet.spacevllm.pack import NO_FRAME, Packed

VISION_CHUNK = 32  # frames per pass of the vision tower in inference: bounds memory, changes no number


@dataclass(frozen=True, slots=True)
class TrainOutput:
    decoder: DecoderOutput | None = None  # of the Q questions
    answer_logits: torch.Tensor | None = None  # (A, V) at packed.answer_at
    middle_logits: torch.Tensor | None = (
        None  # (Q, 3, T, K): does it go on, begin, end in this cell? read from the middle layer
    )
    seen_logits: torch.Tensor | None = None  # (N, K, .): what is in each cell of each real frame
    doing_logits: torch.Tensor | None = (
        None  # (2 or 3, N, K, .): what each is doing, from middle layer, decoder and motion layers
    )
    named_logits: torch.Tensor | None = None  # (A', T, K): which cell does an answer's word name?
    clock_logits: torch.Tensor | None = None  # (N, K, 30): digits of each frame's time
    looks: torch.Tensor | None = None  # (A', T, K): attention of an answer's words, where it is taught


@dataclass(frozen=True, slots=True)
class PrefixState:
    """A video, read once: KV cache of the prefix, last states of its visual and query tokens (B = 1)."""

    cache: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    length: int
    visual: torch.Tensor  # (T, K, D)
    query: torch.Tensor  # (T, D)


@dataclass(frozen=True, slots=True)
class Asked:
    """Result of asking Q packed questions about one video."""

    decoder: DecoderOutput
    answers: list[list[int]] = field(default_factory=list)  # token ids, when text was wanted
    answer_logprobs: list[float] = field(default_factory=list)  # mean log-probability per answer


class SpaceVLLM(nn.Module):  # type: ignore[misc]
    def __init__(self, base: LlavaOnevisionForConditionalGeneration, config: SpaceVLLMConfig) -> None:
        super().__init__()
        self.base = base
        self.config = config
        size = base.config.text_config.hidden_size
        self.space_decoder = SpaceDecoder(size, config.decoder, self.tokens_per_frame)
        if config.motion_layers:
            heads, side = base.config.text_config.num_attention_heads, grid_side(self.tokens_per_frame)
            self.motion = nn.ModuleList(MotionLayer(size, heads, side) for _ in range(config.motion_layers))
            for layer in self.motion:
                layer.start_silent()
        if config.mid_layer:
            self.match = Match(size)
        if config.dense_attributes:
            self.seen_head = SeenHead(size, config.dense_attributes)
        if config.dense_actions:
            self.doing_head = DoingHead(size, config.dense_actions)
            self.last_doing_head = DoingHead(self.space_decoder.width, config.dense_actions)
            if config.motion_layers:
                self.first_doing_head = DoingHead(size, config.dense_actions)

    # --- parts of the base ---------------------------------------------------------------------

    @property
    def tokens_per_frame(self) -> int:
        side = self._patches_per_side
        return int((side // 2 if self.config.pool in ("average", "max") else -(-side // 2)) ** 2)

    @property
    def _patches_per_side(self) -> int:
        vision = self.base.config.vision_config
        return int(vision.image_size // vision.patch_size)

    @property
    def image_size(self) -> int:
        return int(self.base.config.vision_config.image_size)

    @property
    def device(self) -> torch.device:
        return self.base.device

    def frame_features(self, pixels: torch.Tensor, chunk: int | None = None) -> torch.Tensor:
        """Pooled visual tokens of frames: normalised pixels (N, 3, S, S) -> (N, K, D).

        Frames are independent in the vision tower, so frames of several videos go through it as one.
        """
        parts = []
        for piece in pixels.split(chunk or len(pixels)):
            if self.config.pool in ("average", "max"):
                parts.append(self._pooled(self._projected(piece)))
                continue
            features = self.base.model.get_video_features(piece[None], return_dict=True)
            # some versions of transformers add the base's newline embedding as a last row
            pooled = features.pooler_output[0, : len(piece) * self.tokens_per_frame]
            parts.append(pooled.view(len(piece), self.tokens_per_frame, -1))
        return torch.cat(parts)

    def _projected(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, P, D): every patch of the frames, projected, before pooling (as the stock forward does it)."""
        base = self.base.model
        states = base.vision_tower(pixels, output_hidden_states=True).hidden_states
        layer = base.config.vision_feature_layer
        chosen = states[layer] if isinstance(layer, int) else torch.cat([states[k] for k in layer], dim=-1)
        if base.config.vision_feature_select_strategy == "default":
            chosen = chosen[:, 1:]
        projected: torch.Tensor = base.multi_modal_projector(chosen)
        return projected

    def _pooled(self, features: torch.Tensor) -> torch.Tensor:
        """2 x 2 patches each, by average or maximum; an odd last row and column are dropped (27 gives 13)."""
        side = self._patches_per_side
        picture = features.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        small = F.avg_pool2d(picture, 2) if self.config.pool == "average" else F.max_pool2d(picture, 2)
        return small.flatten(2).transpose(1, 2).contiguous()

    def with_motion(self, features: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """(N, K, D) features of the real frames of B videos, after the motion layers; frame_mask (B, T)."""
        if not self.config.motion_layers:
            return features
        videos = features.new_zeros(*frame_mask.shape, *features.shape[1:])
        videos[frame_mask] = features
        for layer in self.motion:
            videos = layer(videos, frame_mask)
        return videos[frame_mask]

    def embed(self, packed: Packed, features: torch.Tensor) -> torch.Tensor:
        """Token embeddings (B, L, D) with features spliced in; features (N, K, D) of N frames in order."""
        embeds: torch.Tensor = self.base.get_input_embeddings()(packed.ids)
        row, frame = packed.frame_mask.nonzero(as_tuple=True)
        where = packed.visual_at[row, frame]  # (N, K)
        embeds = embeds.clone()
        embeds[row[:, None], where] = features.to(embeds.dtype)
        row, k = (packed.newline_at >= 0).nonzero(as_tuple=True)
        embeds[row, packed.newline_at[row, k]] = self.base.model.image_newline.to(embeds.dtype)
        return embeds

    # --- training --------------------------------------------------------------------------------

    def forward(
        self, packed: Packed | None, pixels: torch.Tensor, only_motion: bool = False, looks: bool = False
    ) -> TrainOutput:
        """packed: B rows, Q questions; pixels: (N, 3, S, S) all real frames, row after row.

        Without `packed` only the vision tower runs, and only `seen_logits` come out; without questions in it
        only `seen_logits` and `doing_logits`. only_motion: not even the LLM runs, the motion layers are the last.
        looks: also the attention of the answers' words (`looking`), in the layer behind the middle one.
        """
        features = self.frame_features(pixels)
        seen = self.seen_head(features) if self.config.dense_attributes else None
        if packed is None:
            return TrainOutput(seen_logits=seen)
        features = self.with_motion(features, packed.frame_mask)
        early = self.config.motion_layers and self.config.dense_actions
        first = self.first_doing_head(features)[None] if early else None
        if only_motion:
            return TrainOutput(seen_logits=seen, doing_logits=first)
        hidden, inner = read_packed(
            self.base.model.language_model,
            self.embed(packed, features),
            packed.segment,
            packed.position,
            self.config.mid_layer,
        )
        looked = self.space_decoder.look(_gather(hidden, packed.visual_at), packed.frame_mask)
        doing = None
        if inner is not None and self.config.dense_actions:
            in_middle = _gather(inner, packed.visual_at)[packed.frame_mask]
            doing = torch.stack([self.doing_head(in_middle), self.last_doing_head(looked[packed.frame_mask])])
            doing = doing if first is None else torch.cat([doing, first])
        if not len(packed.question_row):
            return TrainOutput(seen_logits=seen, doing_logits=doing)
        decoded = self.decode(_gather(hidden, packed.query_at), looked, hidden, packed)
        logits = self.base.lm_head(hidden[packed.answer_row, packed.answer_at])
        out = TrainOutput(decoded, logits, seen_logits=seen, doing_logits=doing)
        if inner is None:
            return out
        if looks:
            named = packed.answer_frame != NO_FRAME
            at = packed.answer_row[named], packed.answer_at[named]
            lm = self.base.model.language_model
            out = replace(out, looks=attention_of(lm, self.config.mid_layer, inner, packed, *at))
        return self._matched(out, inner, packed)

    def _matched(self, out: TrainOutput, inner: torch.Tensor, packed: Packed) -> TrainOutput:
        """With what the middle layer says: its words against its visual tokens."""
        row, visual = packed.question_row, _gather(inner, packed.visual_at)
        last = packed.text_at.gather(1, packed.text_mask.sum(1, keepdim=True) - 1)[:, 0]
        named = packed.answer_frame != NO_FRAME
        at = packed.answer_row[named], packed.answer_at[named]
        return replace(
            out,
            middle_logits=self.match.of_questions(inner[row, last], visual, row),
            named_logits=self.match.of_answers(inner[at], visual, at[0]),
            clock_logits=self.match.clock(F.layer_norm(visual[packed.frame_mask], visual.shape[-1:])),
        )

    def decode(
        self, query: torch.Tensor, looked: torch.Tensor, text_states: torch.Tensor, packed: Packed
    ) -> DecoderOutput:
        row = packed.question_row
        text = text_states[row[:, None], packed.text_at]
        output: DecoderOutput = self.space_decoder(
            query, looked, text, packed.frame_mask, packed.text_mask, row
        )
        return output

    # --- inference -------------------------------------------------------------------------------

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def encode_prefix(self, packed: Packed, pixels: torch.Tensor) -> PrefixState:
        """Read one video (packed: one row, no suffixes; pixels (T, 3, S, S)) once for all questions."""
        features = self.with_motion(self.frame_features(pixels, VISION_CHUNK), packed.frame_mask)
        embeds = self.embed(packed, features)
        cache = DynamicCache(config=self.base.config.text_config)
        hidden = self.base.model.language_model(
            inputs_embeds=embeds, position_ids=packed.position, past_key_values=cache, use_cache=True
        ).last_hidden_state
        layers = tuple((layer.keys, layer.values) for layer in cache.layers)
        return PrefixState(
            layers, embeds.shape[1], _gather(hidden, packed.visual_at)[0], _gather(hidden, packed.query_at)[0]
        )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def ask(
        self,
        state: PrefixState,
        suffixes: Sequence[Sequence[int]],
        question_lengths: Sequence[int],
        max_new_tokens: int = 0,
        end_token: int = -1,
    ) -> Asked:
        """Q questions at once: ids of question + tail each; the first `question_lengths[q]` ids are words.

        max_new_tokens > 0 also writes answers, greedily, all questions in step.
        """
        device = state.query.device
        lengths = torch.tensor([len(s) for s in suffixes], device=device)
        ids = torch.tensor([token for suffix in suffixes for token in suffix], device=device)[None]
        segment = torch.repeat_interleave(torch.arange(len(suffixes), device=device), lengths)
        starts = lengths.cumsum(0) - lengths
        position = state.length + torch.arange(ids.shape[1], device=device) - starts[segment]
        cache = DynamicCache(state.cache)  # a new cache on the same tensors: the state stays as it is
        mask = suffix_mask(segment, state.length)
        embeds = self.base.get_input_embeddings()(ids)
        hidden = self.base.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask_for(self.base.model.language_model, mask, embeds.dtype),
            position_ids=position[None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0]
        decoded = self._decode_asked(state, hidden, starts, question_lengths)
        if not max_new_tokens:
            return Asked(decoded)
        answers, logprobs = self._write(
            cache, hidden[starts + lengths - 1], segment, state.length, lengths, max_new_tokens, end_token
        )
        return Asked(decoded, answers, logprobs)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def answer_scores(self, state: PrefixState, suffix: Sequence[int], tree: AnswerTree) -> torch.Tensor:
        """Log-probabilities (N,) of a tree's tokens as answers to one question (ids of question + tail)."""
        device, n = state.query.device, len(suffix)
        ids = torch.tensor([*suffix, *tree.ids.tolist()], device=device)[None]
        position = torch.cat([torch.arange(n), n + torch.from_numpy(tree.depth)]).to(device) + state.length
        mask = torch.ones(ids.shape[1], state.length + ids.shape[1], dtype=torch.bool, device=device)
        mask[:n, state.length :].tril_()
        mask[n:, state.length + n :] = torch.from_numpy(tree.sees()).to(device)
        embeds = self.base.get_input_embeddings()(ids)
        hidden = self.base.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask_for(self.base.model.language_model, mask[None, None], embeds.dtype),
            position_ids=position[None],
            past_key_values=DynamicCache(state.cache),  # the state stays as it is
            use_cache=True,
        ).last_hidden_state[0]
        before = torch.from_numpy(np.where(tree.parent < 0, n - 1, n + tree.parent)).to(device)
        logits = self.base.lm_head(hidden[before]).float()
        if self.config.words:
            logits[:, self.config.words :] = -torch.inf
        return logits.log_softmax(-1).gather(1, ids[0, n:, None])[:, 0]

    def _decode_asked(
        self, state: PrefixState, hidden: torch.Tensor, starts: torch.Tensor, question_lengths: Sequence[int]
    ) -> DecoderOutput:
        device, n = hidden.device, len(question_lengths)
        words = torch.tensor(list(question_lengths), device=device)
        at = torch.arange(int(words.max()), device=device)
        text_mask = at < words[:, None]
        text = hidden[(starts[:, None] + at).clamp_max(len(hidden) - 1)]
        real = torch.ones(1, len(state.query), dtype=torch.bool, device=device)
        output: DecoderOutput = self.space_decoder(
            state.query[None],
            self.space_decoder.look(state.visual[None], real),
            text,
            real,
            text_mask,
            torch.zeros(n, dtype=torch.long, device=device),
        )
        return output

    def _write(
        self,
        cache: DynamicCache,
        last: torch.Tensor,
        segment: torch.Tensor,
        prefix_length: int,
        lengths: torch.Tensor,
        max_new_tokens: int,
        end_token: int,
    ) -> tuple[list[list[int]], list[float]]:
        """Greedy answers for all questions in step: each step feeds one token per unfinished question."""
        n = len(lengths)
        answers: list[list[int]] = [[] for _ in range(n)]
        total = [0.0] * n
        alive = list(range(n))
        past = segment
        for step in range(max_new_tokens):
            scores = self.base.lm_head(last).float()
            if self.config.words:
                scores[:, self.config.words :] = -torch.inf
            best = scores.log_softmax(-1).max(-1)
            still = []
            for k, q in enumerate(alive):
                token = int(best.indices[k])
                total[q] += float(best.values[k])
                answers[q].append(token)
                if token != end_token:
                    still.append(k)
            if not still or step == max_new_tokens - 1:
                break
            alive = [alive[k] for k in still]
            rows = torch.tensor(alive, device=last.device)
            tokens = best.indices[torch.tensor(still, device=last.device)]
            embeds = self.base.get_input_embeddings()(tokens[None])
            mask = suffix_mask(rows, prefix_length, past)
            last = self.base.model.language_model(
                inputs_embeds=embeds,
                attention_mask=mask_for(self.base.model.language_model, mask, embeds.dtype),
                position_ids=(prefix_length + lengths[rows] + step)[None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[0]
            past = torch.cat([past, rows])
        answers = [a[:-1] if a and a[-1] == end_token else a for a in answers]
        return answers, [t / max(len(a), 1) for t, a in zip(total, answers, strict=True)]


def _gather(hidden: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Rows of (B, L, D) at (B, ...) positions -> (B, ..., D)."""
    batch = torch.arange(len(hidden), device=hidden.device).view(-1, *[1] * (at.ndim - 1))
    return hidden[batch, at]
