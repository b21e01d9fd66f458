"""Packing: where everything goes in a row, and who sees whom."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.packed import block_mask, suffix_mask
from tubelet.spacevllm.pack import Packed, Suffix, pack
from tubelet.spacevllm.prompts import Prefix


def prefix_of(n_frames: int, n_visual: int = 2, first: int = 100) -> Prefix:
    """head | [visual .. visual query] per frame | newline-like end; ids count up: places can be checked."""
    length = 1 + n_frames * (n_visual + 1) + 2
    frames = 1 + np.arange(n_frames)[:, None] * (n_visual + 1)
    return Prefix(
        ids=first + np.arange(length),
        visual_at=frames + np.arange(n_visual),
        query_at=frames[:, 0] + n_visual,
        newline_at=length - 2,
    )


words = st.lists(st.integers(1, 50), min_size=1, max_size=5).map(tuple)
suffixes = st.builds(Suffix, question=words, tail=words, answer=st.one_of(st.just(()), words))
rows = st.lists(
    st.tuples(st.integers(1, 4), st.lists(suffixes, min_size=0, max_size=3)), min_size=1, max_size=3
)


@settings(max_examples=60, deadline=None)
@given(rows)
def test_everything_is_where_the_indices_say(batch: list[tuple[int, list[Suffix]]]) -> None:
    prefixes = [prefix_of(n, first=100 * (b + 1)) for b, (n, _) in enumerate(batch)]
    packed = pack(prefixes, [row for _, row in batch], pad_id=7)
    asked = [(b, k, s) for b, (_, row) in enumerate(batch) for k, s in enumerate(row, start=1)]
    lengths = [len(p.ids) + sum(len(s.ids) for s in row) for p, (_, row) in zip(prefixes, batch, strict=True)]
    assert packed.ids.shape == packed.position.shape == packed.segment.shape == (len(batch), max(lengths))
    answers: list[tuple[int, int]] = []
    for b, (n, _) in enumerate(batch):
        p = len(prefixes[b].ids)
        assert packed.ids[b, :p].tolist() == prefixes[b].ids.tolist()
        assert packed.position[b, :p].tolist() == list(range(p))
        assert int(packed.prefix_length[b]) == p and (packed.segment[b, :p] == 0).all()
        assert (packed.segment[b, lengths[b] :] == -1).all() and (packed.ids[b, lengths[b] :] == 7).all()
        assert packed.frame_mask[b].tolist() == [True] * n + [False] * (packed.frame_mask.shape[1] - n)
        assert packed.visual_at[b, :n].tolist() == prefixes[b].visual_at.tolist()
        assert packed.query_at[b, :n].tolist() == prefixes[b].query_at.tolist()
        assert int(packed.newline_at[b]) == prefixes[b].newline_at
    assert packed.question_row.tolist() == [b for b, _, _ in asked]
    for q, (b, k, suffix) in enumerate(asked):
        at = torch.nonzero(packed.segment[b] == k)[:, 0]
        assert packed.ids[b, at].tolist() == list(suffix.ids)
        p = int(packed.prefix_length[b])
        assert packed.position[b, at].tolist() == list(range(p, p + len(suffix.ids)))  # every suffix restarts
        text = packed.text_at[q][packed.text_mask[q]]
        assert text.tolist() == at[: len(suffix.question)].tolist()
        answers += [(b, token) for token in suffix.answer]
    assert [(int(b), int(t)) for b, t in zip(packed.answer_row, packed.answer_ids, strict=True)] == answers
    following = packed.ids[packed.answer_row, packed.answer_at + 1]
    assert following.tolist() == packed.answer_ids.tolist()  # the next token of the position read


def test_no_suffixes_and_moving() -> None:
    packed = pack([prefix_of(2)], [[]])
    assert packed.question_row.shape == packed.answer_ids.shape == (0,)
    assert packed.text_at.shape == (0, 0)
    moved = packed.to("cpu")
    assert isinstance(moved, Packed) and torch.equal(moved.ids, packed.ids)


def test_each_question_alone_has_the_same_positions() -> None:
    """A question's positions and what it can see do not depend on what is packed beside it."""
    questions = [Suffix((1, 2), (3,), (4,)), Suffix((5,), (6,), ()), Suffix((7, 8, 9), (10,), (11, 12))]
    together = pack([prefix_of(3)], [questions])
    sees = block_mask(together.segment)[0, 0]
    for k, question in enumerate(questions, start=1):
        alone = pack([prefix_of(3)], [[question]])
        at = torch.nonzero((together.segment[0] == k) | (together.segment[0] == 0))[:, 0]
        assert together.ids[0, at].tolist() == alone.ids[0].tolist()
        assert together.position[0, at].tolist() == alone.position[0].tolist()
        assert torch.equal(sees[at][:, at], block_mask(alone.segment)[0, 0])
        others = torch.nonzero(together.segment[0] > 0)[:, 0]
        others = others[together.segment[0, others] != k]
        mine = torch.nonzero(together.segment[0] == k)[:, 0]
        assert not sees[mine][:, others].any()


def test_every_row_of_the_mask_sees_something() -> None:
    """A softmax over nothing would be NaN; padding sees itself only."""
    packed = pack([prefix_of(1), prefix_of(3)], [[Suffix((1,), (2,))], [Suffix((1, 2, 3), (4,))] * 2])
    mask = block_mask(packed.segment)[:, 0]
    assert mask.any(-1).all()
    padding = packed.segment[0] == -1
    assert padding.any() and (mask[0][padding].sum(-1) == 1).all()
    assert not mask[0][~padding][:, padding].any()


def test_suffix_mask_is_block_mask_without_the_prefix() -> None:
    """The cached form of the rule = the matching rows of the full form; also when tokens follow later."""
    questions = [Suffix((1, 2), (3,)), Suffix((5,), (6,)), Suffix((7, 8, 9), (10,))]
    packed = pack([prefix_of(2)], [questions])
    length = int(packed.prefix_length[0])
    full = block_mask(packed.segment)[0, 0, length:]
    segment = packed.segment[0, length:]
    assert torch.equal(suffix_mask(segment, length)[0, 0], full)
    # two later tokens, of questions 1 and 3: each sees the prefix, its own question, and itself
    later = suffix_mask(torch.tensor([1, 3]), length, segment)[0, 0]
    assert later.shape == (2, length + len(segment) + 2)
    assert later[:, :length].all()
    assert later[0, length:-2].tolist() == (segment == 1).tolist()
    assert later[1, length:-2].tolist() == (segment == 3).tolist()
    assert later[:, -2:].tolist() == [[True, False], [False, True]]
