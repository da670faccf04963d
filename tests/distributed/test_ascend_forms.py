"""Kernels of several ranks where the target is Ascend: a dry run, as in tests/unit/test_kernels_dispatch.py.

Values of a dry run are zeros: what the kernels do around the operators is held to float64 with other
operators in their places, which compute what MindSpore documents.
"""

import sys
from collections import Counter
from pathlib import Path

import pytest
import ranks
import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

pytestmark = pytest.mark.distributed

HEADS, GROUPS, DIM, VALUES, BATCH, ROWS = 4, 2, 16, 8, 2, 6
SIDES = (256, 512)


def _records() -> list[str]:
    """What the dispatcher logs from now on: (kernel, reason)."""
    import logging

    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.args)

    logging.getLogger("mindspeed_ms.kernels.dispatch").addHandler(Keep())
    return found


def _calls(kernel: str) -> int:
    from mindspeed_ms import _runtime

    rows = _runtime.coverage_rows()
    return sum(
        calls for op, _, route, calls, _ in rows if (op, route) == (f"mindspeed_ms::{kernel}", "mindspore")
    )


def _draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape).to("npu", dtype).requires_grad_()


def _dry_run(rank, world, store):
    import mindspeed_ms.patch  # noqa: F401
    from mindspeed_ms import kernels

    dist.init_process_group("nccl", store=store, rank=rank, world_size=world)
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=world)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    logged = _records()
    kernels.force_implementation("ascend")
    _ring_in_a_dry_run(world, logged)
    group = parallel_state.get_tensor_model_parallel_group()
    _linear_in_a_dry_run(world, group, logged)
    _megatrons_layers_in_a_dry_run(logged)
    _refused_linear(group, logged)
    dist.destroy_process_group()


def _ring_in_a_dry_run(world, logged):
    from mindspeed_ms import _runtime, kernels

    leaves = (
        _draw(ROWS, BATCH, HEADS, DIM),
        _draw(ROWS, BATCH, GROUPS, DIM),
        _draw(ROWS, BATCH, GROUPS, VALUES),
    )
    for causal in (True, False):
        _runtime.reset_coverage()
        out = kernels.context_parallel_attention(*leaves, dist.group.WORLD, causal=causal)
        assert (out.shape, out.dtype) == ((ROWS, BATCH, HEADS, VALUES), torch.bfloat16)
        assert (_calls("ring_step"), _calls("ring_merge")) == (world, world - 1)
        grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
        assert [(g.shape, g.dtype) for g in grads] == [(t.shape, t.dtype) for t in leaves]
        assert (_calls("ring_step"), _calls("attention")) == (2 * world, 0)
        assert not any(t.any() for t in (out, *grads)), "not all of it is from MindSpore's inference"
    assert not logged
    out = kernels.context_parallel_attention(*leaves, dist.group.WORLD, sink=torch.zeros(HEADS, device="npu"))
    assert out.any()
    assert logged[0] == ("ring_step", "the operator knows no sink")
    logged.clear()


def _linear_in_a_dry_run(world, group, logged):
    from mindspeed_ms import _runtime
    from mindspeed_ms.kernels.parallel_linear import column_linear, row_linear

    few, many = SIDES
    _runtime.reset_coverage()
    x, weight = _draw(ROWS, BATCH, few), _draw(many, few)
    y = column_linear(x, weight, group)
    assert (y.shape, y.dtype) == ((world * ROWS, BATCH, many), torch.bfloat16)
    grads = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    assert [g.shape for g in grads] == [x.shape, weight.shape]
    assert _calls("column_linear") == 2
    assert not y.any()
    assert not grads[0].any()
    # a product of torch with gathered rows: numbers
    assert grads[1].any()
    x, weight = _draw(world * ROWS, BATCH, many), _draw(few, many)
    y = row_linear(x, weight, group)
    assert (y.shape, y.dtype) == ((ROWS, BATCH, few), torch.bfloat16)
    grads = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    assert [g.shape for g in grads] == [x.shape, weight.shape]
    assert _calls("row_linear") == 2
    assert not any(t.any() for t in (y, *grads)), "not all of it is from MindSpore's inference"
    assert not logged


def _megatrons_layers_in_a_dry_run(logged):
    """Its own and Transformer Engine's layers reach the operators, with fused sums of weight gradients."""
    import transformer_engine.pytorch as te
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.transformer import TransformerConfig
    from mindspeed_ms import _runtime

    few, many = SIDES
    sizes = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    config = TransformerConfig(
        num_layers=1, hidden_size=few, num_attention_heads=4, params_dtype=torch.bfloat16,
        gradient_accumulation_fusion=True, **sizes,
    )  # fmt: skip
    plain = {"config": config, "init_method": torch.nn.init.ones_, "bias": True, "skip_bias_add": True}
    ours = {
        "sequence_parallel": True, "tp_size": 2, "tp_group": parallel_state.get_tensor_model_parallel_group(),
        "params_dtype": torch.bfloat16, "fuse_wgrad_accumulation": True, "return_bias": True,
    }  # fmt: skip
    pairs = (
        (
            tensor_parallel.ColumnParallelLinear(few, 2 * many, gather_output=False, **plain),
            tensor_parallel.RowParallelLinear(2 * many, few, input_is_parallel=True, **plain),
        ),
        (
            te.Linear(few, 2 * many, parallel_mode="column", **ours),
            te.Linear(2 * many, few, parallel_mode="row", **ours),
        ),
    )
    for layers in pairs:
        _runtime.reset_coverage()
        x = _draw(ROWS, BATCH, few)
        for layer in layers:
            layer.weight.main_grad = torch.zeros_like(layer.weight, dtype=torch.float32)
            layer.weight.grad_added_to_main_grad = False
        y, bias = layers[1](layers[0](x)[0])
        assert (y.shape, bias.shape) == ((ROWS, BATCH, few), (few,))
        y.sum().backward()
        assert x.grad.shape == x.shape
        found = [_calls(k) for k in ("column_linear", "row_linear", "accumulate_weight_gradient")]
        assert found == [2, 2, 2]
        assert all(layer.weight.grad_added_to_main_grad for layer in layers)
    assert not logged


def _refused_linear(group, logged):
    """Calls that Ascend's operators do not take compute as the collectives and products beside them do."""
    from mindspeed_ms.kernels import dispatch
    from mindspeed_ms.kernels.parallel_linear import column_linear, row_linear, takes_fused

    few, many = SIDES
    cases = [
        (
            column_linear,
            _draw(2, few, dtype=torch.float32),
            _draw(many, few, dtype=torch.float32),
            group,
        ),
        (column_linear, _draw(2, few - 1), _draw(many, few - 1), group),
        (column_linear, _draw(2, few), _draw(many, few), dist.group.WORLD),
        (row_linear, _draw(2, few), _draw(many, few, dtype=torch.float16), group),
        (row_linear, _draw(4, few), _draw(8, few), group),
    ]
    words = ("16-bit", "256 to 65534", "one group", "different dtypes", "256 to 65534")
    for (call, x, weight, ranks_of), word in zip(cases, words, strict=True):
        logged.clear()
        dispatch._log_once.cache_clear()
        if x.dtype == weight.dtype:
            assert call(x, weight, ranks_of).any()
        else:
            assert not takes_fused(call.__name__, x, weight, ranks_of)
        assert len(logged) == 1
        assert logged[0][0] == call.__name__
        assert word in logged[0][1]


def test_every_form_of_a_group_in_a_dry_run():
    pytest.importorskip("mindspore", reason="the Ascend forms are MindSpore's")
    ranks.run(_dry_run, 2)


def _softmax_parts(query, key, causal, scale):
    """Scores in float64 and the keys that count, (b, heads, s, sk)."""
    key = key.repeat_interleave(query.shape[2] // key.shape[2], 2)
    scores = torch.einsum("sbhd,tbhd->bhst", query.double(), key.double()) * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores


def _documented_steps(scale):
    """FlashAttentionScore, its gradient and ring_attention_update as their pages have them."""
    from mindspeed_ms.kernels.ring_attention import Steps

    def spread(value, group):
        value = value.double().repeat_interleave(group, 2)
        return torch.nn.functional.pad(value, (0, DIM - value.shape[-1]))

    def forward(query, key, value, causal):
        scores = _softmax_parts(query, key, causal, scale)
        peak = scores.amax(-1, keepdim=True)
        total = torch.exp(scores - peak).sum(-1, keepdim=True)
        probs = torch.exp(scores - peak) / total
        out = torch.einsum("bhst,tbhd->sbhd", probs, spread(value, HEADS // GROUPS))
        return out.flatten(2), peak.expand(-1, -1, -1, 8), total.expand(-1, -1, -1, 8)

    def merge(before, step):
        peak = torch.maximum(before[1], step[1])
        sums = [part[2] * torch.exp(part[1] - peak) for part in (before, step)]
        total = sums[0] + sums[1]
        shares = [(s / total)[..., :1].permute(2, 0, 1, 3).expand(-1, -1, -1, DIM).flatten(2) for s in sums]
        return before[0] * shares[0] + step[0] * shares[1], peak, total

    def backward(query, key, value, grad, merged, causal):
        out, peak, total = merged
        group = HEADS // GROUPS
        probs = torch.exp(_softmax_parts(query, key, causal, scale) - peak[..., :1]) / total[..., :1]
        grad = torch.nn.functional.pad(grad.double(), (0, DIM - grad.shape[-1]))
        rows = (grad * out.view(grad.shape)).sum(-1).permute(1, 2, 0).unsqueeze(-1)
        dscores = probs * (torch.einsum("sbhd,tbhd->bhst", grad, spread(value, group)) - rows) * scale
        wide_key = key.double().repeat_interleave(group, 2)
        dquery = torch.einsum("bhst,tbhd->sbhd", dscores, wide_key)
        dkey = torch.einsum("bhst,sbhd->tbhd", dscores, query.double()).unflatten(2, (-1, group)).sum(3)
        dvalue = torch.einsum("bhst,sbhd->tbhd", probs, grad).unflatten(2, (-1, group)).sum(3)
        return tuple(t.to(query.dtype) for t in (dquery, dkey, dvalue[..., : value.shape[-1]]))

    return Steps(forward, merge, backward)


def _share(tensor, rank, size):
    chunks = tensor.chunk(2 * size)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]])


def _numbers(rank, world, store):
    ranks.init(rank, world, store)
    _ring_numbers(rank, world)
    _linear_numbers(rank, world)
    dist.destroy_process_group()


def _ring_numbers(rank, world):
    from mindspeed_ms.kernels import attention
    from mindspeed_ms.kernels.ring_attention import Ranks, ring_attention

    generator = torch.Generator().manual_seed(3)
    shapes = ((HEADS, DIM), (GROUPS, DIM), (GROUPS, VALUES), (HEADS, VALUES))
    *whole, gradient = (
        torch.randn(world * ROWS, BATCH, *s, generator=generator, dtype=torch.float64) for s in shapes
    )
    for causal in (True, False):
        exact = [t.clone().requires_grad_() for t in whole]
        out = attention(*exact, causal=causal, scale=0.3)
        out.backward(gradient)
        mine = [_share(t, rank, world).requires_grad_() for t in whole]
        ring = Ranks(dist.group.WORLD, world, rank)
        found = ring_attention(*mine, ring, causal, _documented_steps(0.3))
        found.backward(_share(gradient, rank, world))
        for got, expected in zip(
            (found, *(t.grad for t in mine)), (out, *(t.grad for t in exact)), strict=True
        ):
            # the sums of the gradient of query are float32
            torch.testing.assert_close(got, _share(expected.detach(), rank, world), rtol=1e-6, atol=1e-6)


def _linear_numbers(rank, world):
    from mindspeed_ms.kernels.parallel_linear import column_linear, row_linear

    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, weight, gradient = draw(2 * world, 3, 8), draw(4 * world, 8), draw(2 * world, 3, 4 * world)
    exact = x.requires_grad_(), weight.requires_grad_()
    (x @ weight.t()).backward(gradient)
    # columns: each rank has some rows of x and some outputs
    mine = [t.detach().chunk(world)[rank].clone().requires_grad_() for t in exact]
    y = column_linear(*mine, dist.group.WORLD)
    y.backward(gradient.chunk(world, -1)[rank])
    assert torch.allclose(y, (x @ weight.t()).chunk(world, -1)[rank])
    assert torch.allclose(mine[0].grad, x.grad.chunk(world)[rank])
    assert torch.allclose(mine[1].grad, weight.grad.chunk(world)[rank])
    # rows: each rank has all rows of x, some inputs, and gets some rows of the result
    mine = [t.detach().chunk(world, -1)[rank].clone().requires_grad_() for t in exact]
    kept = Counter()

    def into_a_buffer(grad, rows):
        kept["gradient"] += 1
        return grad.t() @ rows

    y = row_linear(*mine, dist.group.WORLD, into_a_buffer)
    y.backward(gradient.chunk(world)[rank])
    assert torch.allclose(y, (x @ weight.t()).chunk(world)[rank])
    assert torch.allclose(mine[0].grad, x.grad.chunk(world, -1)[rank])
    assert torch.allclose(mine[1].grad, weight.grad.chunk(world, -1)[rank])
    assert kept["gradient"] == 1


@pytest.mark.parametrize("world", [2, 4])
def test_what_the_kernels_do_around_their_operators(world):
    ranks.run(_numbers, world)
