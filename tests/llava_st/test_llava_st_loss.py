"""Soft labels against dense targets; neighbour propagation against the published three operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tubelet.errors import DataError, QueryError
from tubelet.llava_st.coordinates import Variables
from tubelet.llava_st.lape import blend, grid_offsets, neighbour_matrix, propagate, reparameterise, resize
from tubelet.llava_st.loss import SoftLabels, soft_label_loss, soft_labels
from tubelet.llava_st.words import find_words


def example(words: Any) -> tuple[torch.Tensor, torch.Tensor, list[Variables]]:
    """Two rows: text and coordinates, the second shorter; the first placeholder of row 0 is not supervised."""
    t, h, w = (words.placeholders[a, "OUTPUT"] for a in ("TEMP", "HEIGHT", "WIDTH"))
    ids = torch.tensor([[5, t, 6, t, w, h, w, h, 7], [8, 9, t, 10, 0, 0, 0, 0, 0]])
    labels = ids.clone()
    labels[0, :3] = -100
    labels[1, 0] = -100
    labels[1, 4:] = -100
    variables = [
        Variables((), (0.9, 0.25), (), (0.0, 1.0), (), (0.123, 7.0)),
        Variables((), (45 / 99, 0.3), (), (), (), ()),
    ]
    return ids, labels, variables


def dense_loss(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy with full (L, V + 300) targets, mean per row, summed over rows."""
    total = hidden.new_zeros(())
    for row in range(len(labels)):
        logits = F.linear(hidden[row, :-1], head)
        keep = labels[row, 1:] != -100
        each = -(targets[row, 1:] * logits.log_softmax(-1)).sum(-1)
        total = total + each[keep].mean()
    return total


def dense_targets(labels: torch.Tensor, width: int, first: int) -> torch.Tensor:
    """One-hot words, and the two-bin targets of `example` written out by hand."""
    out = F.one_hot(labels.clamp_min(0), width).double()
    for row, at, axis, value in (
        (0, 3, 0, 0.25), (0, 4, 2, 0.123), (0, 5, 1, 0.0), (0, 6, 2, 1.0), (0, 7, 1, 1.0), (1, 2, 0, 45 / 99),
    ):  # fmt: skip
        out[row, at] = 0
        exact = value * 99
        low = int(exact + 1e-9)
        out[row, at, first + axis * 100 + low] += 1 - (exact - low)
        out[row, at, first + axis * 100 + min(low + 1, 99)] += exact - low
    return out


@pytest.mark.parametrize("chunk", [0, 3])
def test_soft_labels_equal_dense_targets(small_tokenizer: Any, chunk: int) -> None:
    words = find_words(small_tokenizer)
    ids, labels, variables = example(words)
    width = words.vocabulary + 300
    torch.manual_seed(0)
    hidden = torch.randn(2, 9, 16, dtype=torch.float64, requires_grad=True)
    head = torch.randn(width, 16, dtype=torch.float64, requires_grad=True)
    soft = soft_labels(ids, labels, variables, words)
    assert len(soft.row) == 6 + 3
    ours = soft_label_loss(hidden, head, soft, "official_sum", chunk)
    theirs = dense_loss(hidden, head, labels, dense_targets(labels, width, words.vocabulary))
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-5)
    assert float(soft_label_loss(hidden, head, soft).detach()) == pytest.approx(
        float(theirs.detach()) / 2, abs=1e-5
    )
    for a, b in zip(
        torch.autograd.grad(ours, (hidden, head)), torch.autograd.grad(theirs, (hidden, head)), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_rows_without_labels_do_not_count(small_tokenizer: Any) -> None:
    words = find_words(small_tokenizer)
    ids, labels, variables = example(words)
    hidden, head = torch.randn(2, 9, 8), torch.randn(words.vocabulary + 300, 8)
    labels[1] = -100
    both = soft_label_loss(hidden, head, soft_labels(ids, labels, variables, words))
    alone = soft_label_loss(hidden[:1], head, soft_labels(ids[:1], labels[:1], variables[:1], words))
    torch.testing.assert_close(both, alone)
    labels[:] = -100
    assert float(soft_label_loss(hidden, head, soft_labels(ids, labels, variables, words))) == 0.0


def test_errors(small_tokenizer: Any) -> None:
    words = find_words(small_tokenizer)
    ids, labels, variables = example(words)
    with pytest.raises(QueryError, match=r"2 <WIDTH-OUTPUT> but 0 values in spatial_width_output_locations"):
        soft_labels(ids, labels, [Variables((), (0.1, 0.2), (), (0.1, 0.2), (), ()), variables[1]], words)
    with pytest.raises(DataError, match="one shape"):
        soft_labels(ids, labels[:, :-1], variables, words)
    with pytest.raises(DataError, match="official_sum"):
        empty = torch.zeros(0, dtype=torch.long)
        soft_label_loss(
            torch.zeros(1, 2, 3), torch.zeros(4, 3), SoftLabels(empty, empty, empty, empty, empty, 1), "sum"
        )


def test_propagation_has_the_value_of_the_table_and_the_published_gradient() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(7 + 3 * 10, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(37, 5, dtype=torch.float64)
    ours = propagate(matrix, 7, 10)
    assert torch.equal(ours, matrix)
    (gradient,) = torch.autograd.grad((ours.sin() * weights).sum(), matrix)
    parts = [matrix[:7], *(reparameterise(table) for table in matrix[7:].split(10))]
    theirs = torch.cat(parts)
    torch.testing.assert_close(theirs, matrix)
    (wanted,) = torch.autograd.grad((theirs.sin() * weights).sum(), matrix)
    torch.testing.assert_close(gradient, wanted)
    assert not torch.allclose(gradient[7:], (matrix.cos() * weights)[7:])
    with torch.no_grad():
        assert propagate(matrix, 7, 10) is matrix


def test_the_neighbour_matrix_and_its_rounding() -> None:
    m = neighbour_matrix(4, torch.zeros(1))
    assert m.tolist() == [
        [1, 0.5, 0.25, 0.125],
        [0.5, 1, 0.5, 0.25],
        [0.25, 0.5, 1, 0.5],
        [0.125, 0.25, 0.5, 1],
    ]
    table = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    for dtype, largest in ((torch.float16, 4e-3), (torch.bfloat16, 4e-2)):
        low = table.to(dtype)
        noise = (reparameterise(low) - low).abs()
        assert 0 < float(noise.max()) <= largest  # what the published code adds in half precision; we do not


def test_tables_on_other_grids() -> None:
    """Any frame count: times are blended as tokens are; any grid: a centre-aligned linear resize."""
    k = torch.arange(100.0)
    inputs = torch.cat([k[:, None], 2 * k[:, None], 3 * k[:, None]])
    offsets = grid_offsets(inputs, inputs, (16, 8, 12))
    torch.testing.assert_close(offsets.time[:, 0], torch.linspace(0, 99, 16))
    torch.testing.assert_close(offsets.height[:, 0], 2 * ((torch.arange(8) + 0.5) * 100 / 8 - 0.5))
    torch.testing.assert_close(offsets.width[:, 0], 3 * ((torch.arange(12) + 0.5) * 100 / 12 - 0.5))
    given = grid_offsets(inputs, inputs, (3, 8, 12), torch.tensor([0.0, 0.1, 1.0]))
    torch.testing.assert_close(given.time[:, 0], torch.tensor([0.0, 9.9, 99.0]))
    assert torch.equal(grid_offsets(inputs, inputs, (100, 8, 8)).time[:, 0], k)
    assert grid_offsets(inputs, inputs, (1, 8, 8)).time.tolist() == [[0.0]]
    assert torch.equal(resize(k[:, None], 100)[:, 0], k)
    with pytest.raises(DataError, match="finite"):
        blend(k[:, None], torch.tensor([float("nan")]))
