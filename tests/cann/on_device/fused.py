"""Fused operators of transformers on the simulated device, against torch in float64; what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, mint, ops
from mindspore.ops import auto_generate

ms.set_device("Ascend", 0)

RANDOM = torch.Generator().manual_seed(3)
WIDTH = 16  # of a head, in all tests
CAUSAL = Tensor(np.triu(np.ones((2048, 2048), np.uint8), 1)).astype(ms.bool_)


def exact(*shape: int) -> torch.Tensor:
    """A float64 tensor that is representable in bfloat16."""
    return torch.randn(shape, generator=RANDOM).bfloat16().double().requires_grad_()


def device(tensor: torch.Tensor, dtype: object = ms.bfloat16) -> Tensor:
    return Tensor(tensor.detach().float().numpy()).astype(dtype)


def close(got: Tensor, want: torch.Tensor, tolerance: float = 2e-2) -> None:
    np.testing.assert_allclose(
        got.float().asnumpy(), want.detach().numpy(), rtol=tolerance, atol=tolerance * want.abs().max().item()
    )


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
    """(batch, heads, sequence, width); keys and values may have fewer heads."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if hidden is not None:
        scores = scores.masked_fill(hidden, -1e30)
    return scores.softmax(-1) @ v


def _flash(q: Tensor, k: Tensor, v: Tensor, layout: str, **options: object) -> Tensor:
    axis = {"BNSD": 1, "BSND": 2}.get(layout)
    heads = q.shape[axis] if axis else q.shape[-1] // WIDTH
    return ops.speed_fusion_attention(q, k, v, heads, layout, scale=0.25, **options)[0]


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "BNSD": lambda x: x,
    "BSND": lambda x: x.permute(0, 2, 1, 3),
    "SBH": lambda x: x.permute(2, 0, 1, 3).flatten(2),
    "BSH": lambda x: x.permute(0, 2, 1, 3).flatten(2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flash_attention_causal_with_grouped_queries(layout: str) -> None:
    q, k, v = exact(2, 4, 6, 16), exact(2, 2, 6, 16), exact(2, 2, 6, 16)
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
    want = attention(q, k, v, hidden)
    grads = torch.autograd.grad(want.sum(), (q, k, v))
    place = LAYOUTS[layout]
    inputs = [device(place(x).contiguous()) for x in (q, k, v)]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        options = {"atten_mask": CAUSAL, "sparse_mode": 2, "pre_tokens": 65536, "next_tokens": 0}
        return _flash(q, k, v, layout, **options)

    close(run(*inputs), place(want))
    for one, other in zip(ms.grad(lambda *x: run(*x).float().sum(), (0, 1, 2))(*inputs), grads, strict=True):
        close(one, place(other))


def test_packed_attention() -> None:
    q, k, v = exact(7, 2, 16), exact(7, 2, 16), exact(7, 2, 16)
    ends = [3, 7]
    parts = [
        attention(*(x[start:end].transpose(0, 1)[None] for x in (q, k, v)), None)[0].transpose(0, 1)
        for start, end in ((0, 3), (3, 7))
    ]
    want = torch.cat(parts)
    grads = torch.autograd.grad(want.sum(), (q, k, v))

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        lengths = {"actual_seq_qlen": ends, "actual_seq_kvlen": ends}
        return ops.speed_fusion_attention(q, k, v, 2, "TND", scale=0.25, **lengths)[0]

    inputs = [device(x) for x in (q, k, v)]
    close(run(*inputs), want)
    for one, other in zip(ms.grad(lambda *x: run(*x).float().sum(), (0, 1, 2))(*inputs), grads, strict=True):
        close(one, other)


def test_ring_attention_joins_two_halves_of_the_keys() -> None:
    q, k, v = exact(1, 2, 4, 16), exact(1, 2, 8, 16), exact(1, 2, 8, 16)
    sbh = LAYOUTS["SBH"]
    halves = []
    for part in (slice(0, 4), slice(4, 8)):
        inputs = [device(sbh(x)) for x in (q, k[:, :, part], v[:, :, part])]
        halves.append(ops.speed_fusion_attention(*inputs, 2, "SBH", scale=0.25)[:3])
    (out0, max0, sum0), (out1, max1, sum1) = halves
    joined = ops.ring_attention_update(out0, max0, sum0, out1, max1, sum1, layout="SBH")[0]
    close(joined, sbh(attention(q, k, v, None)))


def test_tokens_are_permuted_and_come_back() -> None:
    tokens, weights = exact(5, 8), exact(5, 2).detach().abs().requires_grad_()
    experts = torch.tensor([[2, 0], [1, 2], [0, 1], [2, 1], [0, 2]])
    order = experts.flatten().argsort(stable=True)
    want = tokens[order // 2]
    back = (tokens[:, None] * weights[..., None]).sum(1)
    gradients = torch.autograd.grad(back.sum(), (tokens, weights))
    x, w, e = device(tokens), device(weights), Tensor(experts.numpy(), ms.int32)
    permuted, rows = ops.moe_token_permute(x, e)
    close(permuted, want)
    assert rows.asnumpy().tolist() == order.argsort().tolist()

    def there_and_back(x: Tensor, w: Tensor) -> Tensor:
        permuted, rows = ops.moe_token_permute(x, e)
        return ops.moe_token_unpermute(permuted, rows, w)

    close(there_and_back(x, w), back)
    ours = ms.grad(lambda x, w: there_and_back(x, w).float().sum(), (0, 1))(x, w)
    for one, other in zip(ours, gradients, strict=True):
        close(one, other)


def _grouped(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    return auto_generate.grouped_matmul_v4([x], [weights], group_list=ends, split_item=3, group_type=0)[0]


def test_grouped_matmul() -> None:
    x, weights = exact(6, 8), exact(2, 8, 4)
    want = torch.cat([x[:2] @ weights[0], x[2:] @ weights[1]])
    gradients = torch.autograd.grad(want.sum(), (x, weights))
    inputs, ends = (device(x), device(weights)), Tensor([2, 6], ms.int64)
    close(_grouped(*inputs, ends), want)
    ours = ms.grad(lambda *y: _grouped(*y, ends).float().sum(), (0, 1))(*inputs)
    for one, other in zip(ours, gradients, strict=True):
        close(one, other)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_cross_entropy(reduction: str) -> None:
    logits, target = exact(5, 7), torch.tensor([1, 6, -100, 0, 3])
    want = torch.nn.functional.cross_entropy(logits, target, reduction=reduction)
    (gradient,) = torch.autograd.grad(want.sum(), logits)

    def run(x: Tensor) -> Tensor:
        return auto_generate.cross_entropy_loss(x, Tensor(target.numpy()), reduction=reduction)[0]

    x = device(logits, ms.float32)
    close(run(x), want, 1e-5)
    close(ms.grad(lambda x: run(x).sum())(x), gradient, 1e-5)


def test_adamw_counts_its_first_step_as_one() -> None:
    weight, grad = exact(4, 3).detach(), exact(4, 3).detach()
    reference = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW([reference], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.2)
    parts = [device(weight, ms.float32) * 1, *(mint.zeros((4, 3)) for _ in range(3))]
    for step in range(2):
        reference.grad = grad * (step + 1)
        optimizer.step()
        auto_generate.adamw_op(
            *parts,
            device(grad * (step + 1), ms.float32),
            Tensor(step, ms.float32),
            0.1,
            0.9,
            0.95,
            0.2,
            1e-8,
            False,
            False,
        )
        close(parts[0], reference, 1e-5)


# ---- what the documentation forbids -------------------------------------------------------------------
def test_a_sparse_mode_needs_the_compressed_mask() -> None:
    q = device(exact(1, 2, 6, 16))
    mask = Tensor(np.triu(np.ones((6, 6), np.uint8), 1)).astype(ms.bool_)
    with pytest.raises(RuntimeError, match=r"2048"):
        _flash(q, q, q, "BNSD", atten_mask=mask, sparse_mode=2).asnumpy()


def test_group_sizes_that_do_not_add_up_end_the_kernel() -> None:
    with pytest.raises(RuntimeError, match="groupList ends at 5, x has 6"):
        _grouped(device(exact(6, 8)), device(exact(2, 8, 4)), Tensor([2, 5], ms.int64)).asnumpy()
