"""Attention rows equal eager maps: grouped heads, padding, block masks, caches, half precision, gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model, Qwen3NextConfig

from tubelet.errors import ModelError
from tubelet.mllm.attention_rows import RowReader, row_attention, row_weights, use_row_attention
from tubelet.mllm.family import softmax_layers
from tubelet.packed import block_mask, suffix_mask

LAYERS, HEADS = 3, 4


def _two(kind: str = "qwen2", dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The same random model with row attention and with eager attention."""
    shape: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": {"qwen2": 2, "qwen2_one_kv": 1, "llama": 4}[kind],
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model: Any = LlamaModel(LlamaConfig(**shape)) if kind == "llama" else Qwen2Model(Qwen2Config(**shape))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:
                    sharp = 3.0 if "q_proj" in name else 1.0
                    parameter.normal_(0.0, sharp * parameter.shape[1] ** -0.5)
    model = model.to(dtype).eval().requires_grad_(False)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    use_row_attention(model)
    return model, eager


def _reader(rows: Any, weights: torch.Tensor | None = None, **kwargs: Any) -> RowReader:
    weights = row_weights(LAYERS, HEADS) if weights is None else weights
    return RowReader(torch.as_tensor(rows), kwargs.pop("columns", None), weights, **kwargs)


def _maps(eager: Any, **inputs: Any) -> torch.Tensor:
    """(L, B, H, Q, N)"""
    return torch.stack(eager(**inputs, output_attentions=True).attentions)


def _tokens(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["qwen2", "qwen2_one_kv", "llama"])
def test_rows_are_the_mean_of_eager_maps(kind: str) -> None:
    model, eager = _two(kind)
    ids, reader = _tokens(40), _reader([11, 39, 5])
    out = model(input_ids=ids, row_reader=reader)
    maps = _maps(eager, input_ids=ids)
    want = maps.mean((0, 2))[:, [11, 39, 5]]
    assert reader.total is not None
    assert torch.allclose(reader.total, want, atol=1e-6)
    assert torch.allclose(reader.total.sum(-1), torch.ones(1, 3), atol=1e-5)
    assert want.max() > 0.2  # sharp enough that a wrong head or layer would show
    assert torch.equal(out.last_hidden_state, model(input_ids=ids).last_hidden_state)
    sdpa = copy.deepcopy(model)
    sdpa.set_attn_implementation("sdpa")
    assert torch.equal(out.last_hidden_state, sdpa(input_ids=ids).last_hidden_state)


def test_chosen_layers_heads_columns_and_weights() -> None:
    model, eager = _two()
    ids, columns = _tokens(30), torch.tensor([4, 2, 17])
    maps = _maps(eager, input_ids=ids)[:, :, :, 28:29][..., columns]

    reader = _reader([28], row_weights(LAYERS, HEADS, layers=[-1, 0]), columns=columns)
    model(input_ids=ids, row_reader=reader)
    assert torch.allclose(reader.total, maps[[2, 0]].mean((0, 2)), atol=1e-6)  # type: ignore[arg-type]
    assert reader.wanted == {0, 2}

    heads = [[0.0, 1.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.25]]
    weights = row_weights(LAYERS, HEADS, [0, 2], [2.0, 3.0], heads)
    reader = _reader([28], weights, columns=columns, keep_layers=frozenset({2}))
    model(input_ids=ids, row_reader=reader)
    last = 3 * (0.5 * maps[2, :, 0] + 0.25 * maps[2, :, 3])
    assert torch.allclose(reader.total, 2 * maps[0, :, 1] + last, atol=1e-6)  # type: ignore[arg-type]
    assert list(reader.layers) == [2] and torch.allclose(reader.layers[2], last, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side: str) -> None:
    model, eager = _two()
    ids, mask = _tokens(20, 2), torch.ones(2, 20, dtype=torch.long)
    mask[1, :6] = 0
    rows = torch.tensor([[19, 3], [18, 9]])
    if side == "right":
        mask, rows = mask.flip(1), torch.tensor([[19, 3], [13, 8]])
    reader = _reader(rows)
    model(input_ids=ids, attention_mask=mask, row_reader=reader)
    maps = _maps(eager, input_ids=ids, attention_mask=mask).mean((0, 2))
    want = torch.stack([maps[b, rows[b]] for b in range(2)])
    assert torch.allclose(reader.total, want, atol=1e-6)  # type: ignore[arg-type]
    assert bool((reader.total[1][:, mask[1] == 0] == 0).all())  # type: ignore[index]


@pytest.mark.parametrize("additive", [False, True])
def test_cached_prefix_and_packed_suffixes(additive: bool) -> None:
    """Rows of two suffixes after one cached prefix equal those of two separate whole forwards."""
    model, eager = _two()
    prefix, first, second = _tokens(25), _tokens(6, seed=1), _tokens(9, seed=2)
    cache = model(input_ids=prefix, use_cache=True).past_key_values
    segment = torch.tensor([1] * 6 + [2] * 9)
    mask: torch.Tensor = suffix_mask(segment, 25)
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    reader = _reader([5, 14, 2], columns=torch.arange(25))
    positions = torch.tensor([[*range(25, 31), *range(25, 34)]])
    model(
        input_ids=torch.cat([first, second], 1),
        position_ids=positions,
        attention_mask=mask,
        past_key_values=cache,
        row_reader=reader,
    )
    one = _maps(eager, input_ids=torch.cat([prefix, first], 1)).mean((0, 2))[0, [30, 27], :25]
    two = _maps(eager, input_ids=torch.cat([prefix, second], 1)).mean((0, 2))[0, 33, :25]
    want = torch.stack([one[0], two, one[1]])
    assert torch.allclose(reader.total[0], want, atol=1e-6)  # type: ignore[index]


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize(("n_past", "repeats"), [(60, 0), (10, 2)])
def test_few_rows_of_grouped_heads_repeat_no_keys(
    monkeypatch: pytest.MonkeyPatch, n_past: int, repeats: int, additive: bool
) -> None:
    """Questions after a long video: output and gradients of transformers' SDPA, which repeats keys and values."""
    from transformers.integrations import sdpa_attention

    made: list[int] = []
    repeat = sdpa_attention.repeat_kv
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda x, n: made.append(n) or repeat(x, n))
    make = torch.Generator().manual_seed(2)
    segment = torch.tensor([1] * 5 + [2] * 7)
    n, size = len(segment), 8
    module = type("Attention", (), {"num_key_value_groups": 3, "is_causal": True, "layer_idx": 0})
    shapes = (6, n), (2, n_past + n), (2, n_past + n)
    states = [torch.randn(1, *shape, size, generator=make).requires_grad_() for shape in shapes]
    mask = suffix_mask(segment, n_past)
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    weight = torch.randn(1, n, 6, size, generator=make)
    outputs, gradients = [], []
    for attention in (row_attention, sdpa_attention.sdpa_attention_forward):
        output = attention(module, *states, mask, scaling=0.7)[0]
        outputs.append(output)
        gradients.append(torch.autograd.grad((output * weight).sum(), states))
        if attention is row_attention:
            assert len(made) == repeats
    assert outputs[0].shape == (1, n, 6, size) and torch.allclose(outputs[0], outputs[1], atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))
    assert len(made) == repeats + 2


def test_packed_in_one_pass_and_one_token_after_a_cache() -> None:
    model, eager = _two()
    ids, segment = _tokens(18), torch.tensor([[0] * 10 + [1] * 4 + [2] * 4])
    positions = torch.tensor([[*range(10), *range(10, 14), *range(10, 14)]])
    mask = block_mask(segment)
    reader = _reader([13, 17])
    model(input_ids=ids, position_ids=positions, attention_mask=mask, row_reader=reader)
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    maps = _maps(eager, input_ids=ids, position_ids=positions, attention_mask=additive)
    assert torch.allclose(reader.total, maps.mean((0, 2))[:, [13, 17]], atol=1e-6)  # type: ignore[arg-type]

    cache = model(input_ids=ids[:, :17], use_cache=True).past_key_values
    reader = _reader([0])
    model(input_ids=ids[:, 17:], past_key_values=cache, row_reader=reader)
    want = _maps(eager, input_ids=ids).mean((0, 2))[:, 17:]
    assert torch.allclose(reader.total, want, atol=1e-6)  # type: ignore[arg-type]


def test_bfloat16_rows_are_close_to_float32_rows_and_are_float32() -> None:
    model, eager = _two(dtype=torch.bfloat16)
    ids, reader = _tokens(40), _reader([39, 20])
    model(input_ids=ids, row_reader=reader)
    want = _maps(eager, input_ids=ids).float().mean((0, 2))[:, [39, 20]]
    assert reader.total is not None and reader.total.dtype == torch.float32
    assert torch.allclose(reader.total, want, atol=6e-3)  # 8 bits of mantissa in q, k and in eager's maps
    assert torch.allclose(reader.total.sum(-1), torch.ones(1, 2), atol=1e-5)


def test_gradients_flow_through_rows_as_through_eager_maps() -> None:
    model, eager = _two()
    embeds = torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(5))
    found = []
    for network in (model, eager):
        variable = embeds.clone().requires_grad_()
        if network is model:
            reader = _reader([23, 22])
            model(inputs_embeds=variable, row_reader=reader)
            rows = reader.total
        else:
            rows = _maps(eager, inputs_embeds=variable).mean((0, 2))[:, [23, 22]]
        assert rows is not None
        rows.square().sum().backward()
        found.append(variable.grad)
    assert found[1].abs().max() > 1e-3
    assert torch.allclose(found[0], found[1], atol=1e-6, rtol=1e-4)


def test_no_full_map_is_made() -> None:
    """Nothing of size H x N x N is allocated: the largest tensor in the rows' computation has R x N entries."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from tubelet.mllm.attention_rows import attention_of_rows

    n, heads, rows = 512, 4, torch.tensor([[511, 510]])
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    query, key = torch.randn(1, heads, n, 8), torch.randn(1, 2, n, 8)
    with Watch():
        attention_of_rows(query, key, None, rows, 1.0)
    assert largest <= max(query.numel(), heads * rows.shape[1] * n)
    assert largest < heads * n * n / 100


def test_wrong_layers_and_weights_are_named() -> None:
    with pytest.raises(ModelError, match=r"no layer 3: the model has 3"):
        row_weights(LAYERS, HEADS, [3])
    with pytest.raises(ModelError, match="distinct"):
        row_weights(LAYERS, HEADS, [])
    with pytest.raises(ModelError, match=r"got \(1,\) and \(4,\)"):
        row_weights(LAYERS, HEADS, [0, 1], [1.0])


def test_linear_attention_layers_are_named() -> None:
    config = Qwen3NextConfig(num_hidden_layers=4)
    assert "linear_attention" in config.layer_types
    with pytest.raises(ModelError, match=r"Some-VL has a qwen3_next .* layers 0, 1, 2 are linear_attention"):
        softmax_layers(config, "Some-VL")
    assert softmax_layers(Qwen2Config(num_hidden_layers=2), "Some-VL") == (0, 1)


def test_models_outside_the_attention_interface_are_refused() -> None:
    class Closed(torch.nn.Module):
        _supports_attention_backend = False

    with pytest.raises(ModelError, match="Closed does not use transformers' attention interface"):
        use_row_attention(Closed())
