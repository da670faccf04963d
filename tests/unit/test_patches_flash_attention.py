"""The stand-in for flash_attn: each call against softmax attention written out in float64."""

import subprocess
import sys

import mindspeed_ms.patch  # noqa: F401 - the device
import pytest
import torch
from mindspeed_ms.patches.stand_ins.flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache

DEVICES = ("cpu", "npu")


def exact(query, key, value, causal):
    """(s, heads, d) on (sk, kv_heads, d), the last query aligned with the last key, in float64."""
    query, key, value = (t.cpu().double() for t in (query, key, value))
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) / query.shape[-1] ** 0.5
    if causal:
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(key.shape[0] - query.shape[0] + 1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)


def in_blocks(parts, size, table, blocks):
    """Cache (blocks, size, ...): part i in the blocks that row i of `table` names, NaN elsewhere."""
    cache = torch.full((blocks, size, *parts[0].shape[1:]), float("nan"))
    for part, row in zip(parts, table, strict=True):
        for number, piece in zip(row, part.split(size), strict=False):
            cache[number, : len(piece)] = piece
    return cache


@pytest.mark.parametrize("device", DEVICES)
def test_packed_queries_on_a_cache_in_blocks(device):
    torch.manual_seed(0)
    lengths, many = [5, 0, 9, 4], [3, 0, 1, 4]
    table = torch.tensor([[6, 2, 0], [-1, -1, -1], [1, 5, 3], [4, -1, -1]], dtype=torch.int32)
    keys, values = ([torch.randn(n, 2, 16) for n in lengths] for _ in range(2))
    queries = [torch.randn(n, 4, 16) for n in many]
    sums = [torch.tensor([0, *n]).cumsum(0).int().to(device) for n in (many, lengths)]
    out = flash_attn_varlen_func(
        torch.cat(queries).to(device),
        *(in_blocks(p, 4, table, 7).to(device) for p in (keys, values)),
        *sums,
        4,
        9,
        causal=True,
        block_table=table.to(device),
    )
    expected = torch.cat([exact(*one, causal=True) for one in zip(queries, keys, values, strict=True)])
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_packed_sequences_have_gradients(device):
    torch.manual_seed(1)
    q, k, v = (torch.randn(7, heads, 8) for heads in (4, 2, 2))
    ours = [t.clone().to(device).detach().requires_grad_() for t in (q, k, v)]
    sums = torch.tensor([0, 3, 7], dtype=torch.int32, device=device)
    flash_attn_varlen_func(*ours, sums, sums, 4, 4, causal=True).square().sum().backward()
    theirs = [t.double().requires_grad_() for t in (q, k, v)]
    parts = [exact(*(t[a:b] for t in theirs), causal=True) for a, b in ((0, 3), (3, 7))]
    torch.cat(parts).square().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad.cpu().double(), other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_new_tokens_are_turned_written_and_attended_to(device, paged, interleaved):
    torch.manual_seed(2)
    lengths, new, size = [3, 6], 2, 4
    angles = torch.rand(12, 4, dtype=torch.float64) * 3  # of the first 8 channels of 16
    past = [[torch.randn(n, 2, 16) for n in lengths] for _ in range(2)]
    q, k, v = (torch.randn(2, new, heads, 16) for heads in (4, 2, 2))
    if paged:
        table = torch.tensor([[3, 0], [1, 4]], dtype=torch.int32)
        caches = [in_blocks(p, size, table, 5).to(device) for p in past]
    else:  # Megatron's static cache: (sequence, batch, heads, channels), seen the other way round
        table = None
        caches = [torch.zeros(8, 2, 2, 16, device=device).transpose(0, 1) for _ in range(2)]
        for cache, parts in zip(caches, past, strict=True):
            for i, part in enumerate(parts):
                cache[i, : len(part)] = part.to(device)
    out = flash_attn_with_kvcache(
        q.to(device),
        *caches,
        k.to(device),
        v.to(device),
        rotary_cos=angles.cos().float().to(device),
        rotary_sin=angles.sin().float().to(device),
        cache_seqlens=torch.tensor(lengths, dtype=torch.int32, device=device),
        block_table=None if table is None else table.to(device),
        causal=True,
        rotary_interleaved=interleaved,
    )

    def turned(x, begin):  # as complex numbers
        first = x[..., :8].double()
        pairs = (first[..., ::2], first[..., 1::2]) if interleaved else first.chunk(2, -1)
        spun = torch.complex(*pairs) * torch.polar(torch.ones(()).double(), angles[begin : begin + new, None])
        parts = (spun.real, spun.imag)
        joined = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
        return torch.cat((joined, x[..., 8:].double()), -1)

    for i, length in enumerate(lengths):
        keys = torch.cat((past[0][i].double(), turned(k[i], length)))
        values = torch.cat((past[1][i].double(), v[i].double()))
        expected = exact(turned(q[i], length), keys, values, causal=True)
        torch.testing.assert_close(out[i].cpu().double(), expected, rtol=1e-5, atol=1e-5)
        for cache, written in zip(caches, (keys, values), strict=True):
            blocks = cache[table[i].to(device).long()].flatten(0, 1) if paged else cache[i]
            torch.testing.assert_close(blocks[: length + new].cpu().double(), written, rtol=1e-5, atol=1e-5)


def test_what_is_not_implemented_says_so():
    q = torch.zeros(1, 1, 2, 8)
    with pytest.raises(NotImplementedError, match="cache_batch_idx"):
        flash_attn_with_kvcache(q, q, q, cache_batch_idx=torch.zeros(1))
    with pytest.raises(ValueError, match="do not fit"):
        flash_attn_with_kvcache(q, *torch.zeros(2, 1, 1, 2, 8), q, q, cache_seqlens=1)


def test_megatron_finds_it():
    script = """
import mindspeed_ms.patch
from megatron.core.utils import is_fa_min_version
from megatron.core.transformer import attention
assert is_fa_min_version("2.7.3")
assert attention.flash_attn_with_kvcache.__module__ == "flash_attn"
assert "stand_ins/flash_attn" in attention.flash_attn_with_kvcache.__code__.co_filename
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
