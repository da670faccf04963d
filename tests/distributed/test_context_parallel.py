"""Attention over a sequence that ranks share, against float64 attention over the whole sequence on one."""

import pytest
import ranks
import torch
import torch.distributed as dist
from mindspeed_ms.kernels import (
    attention,
    context_parallel_attention,
    context_parallel_packed_attention,
    packed_segments,
)

pytestmark = pytest.mark.distributed

CHUNK, BATCH, HEADS, GROUPS, DIM, VALUES = 6, 2, 8, 4, 16, 24
CASES = [
    *({"method": m, "causal": c} for m in ("p2p", "all_gather", "a2a") for c in (True, False)),
    {"method": "p2p", "sink": True, "scale": 0.3},
    *({"method": m, "sink": True, "window": (9, 0), "causal": True} for m in ("all_gather", "a2a")),
]


def _whole(size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """query, key, value and the gradient of the output, for the whole sequence."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((HEADS, DIM), (GROUPS, DIM), (GROUPS, VALUES), (HEADS, VALUES))
    return [torch.randn(2 * size * CHUNK, BATCH, *s, generator=generator, dtype=dtype) for s in shapes]


def _share(tensor: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    chunks = tensor.chunk(2 * size)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]])


def _results(leaves, gradient, call):
    """Output and gradients of ``call(query, key, value)``, in float64 on the CPU."""
    leaves = [t.clone().requires_grad_() for t in leaves]
    out = call(*leaves)
    out.backward(gradient)
    return [t.detach().cpu().double() for t in (out, *(leaf.grad for leaf in leaves))]


def _compare(size, rank, device, dtype, tolerance, options):
    options = {"causal": True, **options}
    method = options.pop("method")
    sink = torch.linspace(-1, 1, HEADS, dtype=torch.float64) if options.pop("sink", False) else None
    *whole, gradient = (t.double() for t in _whole(size, dtype))
    expected = _results(whole, gradient, lambda *qkv: attention(*qkv, sink=sink, **options))
    *mine, gradient = (_share(t, rank, size).to(device) for t in _whole(size, dtype))
    if sink is not None:
        options["sink"] = sink.to(device, dtype)
    results = _results(
        mine,
        gradient,
        lambda *qkv: context_parallel_attention(*qkv, dist.group.WORLD, method=method, **options),
    )
    for name, got, exact in zip(("out", "query", "key", "value"), results, expected, strict=True):
        torch.testing.assert_close(
            got,
            _share(exact, rank, size),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda m, n=name: f"{n} of {method} with {options}: {m}",
        )


def _compare_packed(size, rank, device, causal):
    """Two sequences of 6 * size and 2 * size tokens, the first less its last 3, and 2 tokens of nothing."""
    *whole, gradient = (t[: 8 * size, 0] for t in _whole(size, torch.float32))
    sums, places = torch.tensor([0, 6 * size - 3, 8 * size - 3]), torch.tensor([0, 6 * size, 8 * size])
    gradient[6 * size - 3 : 6 * size] = 0
    segments = packed_segments(sums, None, places)
    exact = [t.double() for t in whole]
    expected = _results(
        exact, gradient.double(), lambda *qkv: attention(*qkv, causal=causal, segments=segments)
    )

    def share(tensor):
        parts = [_share(part, rank, size) for part in tensor.split([6 * size, 2 * size])]
        return torch.cat([*parts, torch.zeros(2, *tensor.shape[1:], dtype=tensor.dtype)])

    results = _results(
        [share(t).to(device) for t in whole],
        share(gradient).to(device),
        lambda *qkv: context_parallel_packed_attention(
            *qkv, dist.group.WORLD, sums.to(device), places.to(device), causal=causal
        ),
    )
    for got, one in zip(results, expected, strict=True):
        torch.testing.assert_close(got, share(one), rtol=1e-5, atol=1e-5)


def _compare_all(rank, size, store, device):
    import mindspeed_ms.patch  # noqa: F401

    ranks.init(rank, size, store)
    for options in CASES:
        _compare(size, rank, device, torch.float32, 1e-5, options)
    # Partial results of bfloat16 are rounded once each, then their sum: 2 * 2**-8 of values below 2.
    _compare(size, rank, device, torch.bfloat16, 2e-2, {"method": "p2p"})
    for causal in (True, False):
        _compare_packed(size, rank, device, causal)
    dist.destroy_process_group()


@pytest.mark.parametrize(("size", "device"), [(2, "npu"), (4, "cpu")])
def test_every_method_gives_what_one_rank_gives(size, device):
    ranks.run(_compare_all, size, device)


def _refused(rank, size, store):
    ranks.init(rank, size, store)
    query, key, value, _ = (_share(t, rank, size) for t in _whole(size, torch.float32))
    for options, word in (
        ({"method": "p2p", "window": (4, 0)}, "all_gather or a2a"),
        ({"method": "ring"}, "none of p2p"),
    ):
        with pytest.raises(ValueError, match=word):
            context_parallel_attention(query, key, value, dist.group.WORLD, **options)
    with pytest.raises(ValueError, match="multiples"):
        context_parallel_attention(
            query[:, :, :3], key[:, :, :3], value[:, :, :3], dist.group.WORLD, method="a2a"
        )
    dist.destroy_process_group()


def test_what_it_cannot_do_is_refused():
    ranks.run(_refused, 2)
