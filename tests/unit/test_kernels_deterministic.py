"""Same bits: call after call, and in torch's deterministic mode whatever the number of threads.

Only products (oneDNN splits them by threads) need the mode; every other kernel splits its work by shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mindspeed_ms.patch  # noqa: F401 - the device
import pytest
import torch
from mindspeed_ms import kernels
from mindspeed_ms.kernels import aten, matmul
from mindspeed_ms.kernels.weight_gradient import accumulate_weight_gradient

#: Public functions that put other kernels together, or make integers: they follow their parts.
MADE_OF_KERNELS = (
    "cached_attention",
    "context_parallel_attention",
    "context_parallel_packed_attention",
    "grouped_weight_gradient",
    "latent_key_value",
    "latent_query",
    "load_balancing_loss",
    "packed_positions",
    "packed_segments",
    "paged_rows",
    "permutation",
)

THREADS = (1, 2, 3)
DTYPES = (torch.float32, torch.bfloat16)
Tensor = torch.Tensor


@contextmanager
def threads(count: int, deterministic: bool) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(False)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


ROWS, WIDTH = 700, 520
CU_SEQLENS = torch.tensor([0, 5, 5, 120, 260])


def attention(
    dtype: torch.dtype, dropout: float = 0.0, **options
) -> tuple[Callable[..., Tensor], list[Tensor]]:
    def call(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
        torch.manual_seed(1)  # of dropout
        return kernels.attention(q, k, v, causal=True, dropout=dropout, sink=sink, **options)

    packed = "cu_seqlens_q" in options
    lead = (260,) if packed else (130, 2)
    return call, [
        draw(*lead, 4, 48, dtype=dtype),
        draw(*lead, 2, 48, dtype=dtype),
        draw(*lead, 2, 32, dtype=dtype),
        draw(4, dtype=dtype),
    ]


def bias_dropout_add(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    torch.manual_seed(2)
    return kernels.bias_dropout_add(x, bias, residual, 0.1)


def cases(dtype: torch.dtype) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Name -> differentiable function and its inputs, of several tasks and panels each."""
    x, weight, bias = draw(ROWS, WIDTH, dtype=dtype), draw(WIDTH, dtype=dtype), draw(WIDTH, dtype=dtype)
    ids, target = torch.randint(0, 60, (ROWS,)).to("npu"), torch.randint(0, WIDTH, (ROWS,)).to("npu")
    angles = draw(ROWS, 1, 1, 40).to("npu")
    counts = [300, 0, 150, 250]
    few = draw(ROWS, 64, dtype=dtype)
    experts = draw(4, 64, 96, dtype=dtype)
    routed = (x[:, :4] < 0.2).to("npu")
    rows, back = kernels.permute(x.to("npu"), routed)
    return {
        "rms_norm": (kernels.rms_norm, [x, weight]),
        "layer_norm": (kernels.layer_norm, [x, weight, bias]),
        "bias_activation": (kernels.bias_activation, [x, bias]),
        "bias_glu": (lambda x, b, w: kernels.bias_glu(x, b, weights=w), [x, bias, draw(ROWS)]),
        "bias_dropout_add": (bias_dropout_add, [x, bias, x.flip(0)]),
        "scaled_softmax": (lambda x: kernels.scaled_softmax(x, causal=True), [draw(2, 4, 130, 130)]),
        "rope": (lambda x: kernels.rope(x, angles), [draw(ROWS, 1, 8, 48, dtype=dtype)]),
        "vocab_parallel_cross_entropy": (
            lambda x: kernels.vocab_parallel_cross_entropy(x, target, 0.1), [x]
        ),
        "linear_cross_entropy": (
            lambda x, w: kernels.linear_cross_entropy(x, w, target, chunk_bytes=1 << 18),
            [few, draw(WIDTH, 64, dtype=dtype)],
        ),
        "attention": attention(dtype),
        "attention with dropout": attention(dtype, dropout=0.25),
        "attention of packed sequences": attention(dtype, cu_seqlens_q=CU_SEQLENS),
        "topk_router": (lambda x: kernels.topk_router(x, 4)[0], [few]),
        "auxiliary_scores": (lambda x: kernels.auxiliary_scores(x, 4)[1], [few]),
        "gather_rows": (lambda x: kernels.gather_rows(x, ids), [x[:60]]),
        "combine_rows": (lambda x, w: kernels.combine_rows(x, ids, 60, w), [x, draw(ROWS)]),
        "permute": (lambda x: kernels.permute(x, routed)[0], [x]),
        "unpermute": (lambda x, p: kernels.unpermute(x, back, ROWS, p), [rows, x[:, :4].float()]),
        "grouped_matmul": (lambda x, w: kernels.grouped_matmul(x, w, counts), [few, experts]),
        "newton_schulz": (lambda x: kernels.newton_schulz(x, 2, dtype=dtype), [draw(200, 3000, dtype=dtype)]),
    }  # fmt: skip


def updates(dtype: torch.dtype) -> dict[str, Callable[[], Tensor | list[float]]]:
    """Name -> what has no gradient; makes its own tensors, as some are written."""
    x, few = draw(ROWS, WIDTH, dtype=dtype), draw(ROWS, 64, dtype=dtype)
    ids = torch.randint(0, 60, (ROWS,))

    def adam_step() -> Tensor:
        state = [x.float().clone() for _ in range(2)] + [x.float().square()]
        kernels.adam_step([state[0]], [x], [state[1]], [state[2]], step=3, lr=0.1)
        return torch.stack(state)

    def sgd_step() -> Tensor:
        state = [x.float().clone() for _ in range(2)]
        kernels.sgd_step([state[0]], [x], [state[1]], lr=0.1, momentum=0.9)
        return torch.stack(state)

    def scale_into() -> Tensor:
        scaled = torch.empty_like(x)
        kernels.scale_into([scaled], [x], 0.3)
        return scaled

    def clip_by_norm_() -> Tensor:
        grad = x.clone()
        kernels.clip_by_norm_([grad], 1.0, kernels.l2_norm([grad]))
        return grad

    def weight_gradient() -> Tensor:
        total = torch.ones(64, WIDTH)
        accumulate_weight_gradient(x, few, total)
        return total

    return {
        "adam_step": adam_step,
        "sgd_step": sgd_step,
        "clip_by_norm_": clip_by_norm_,
        "l2_norm": lambda: [kernels.l2_norm([x, few])],
        "norm_of": lambda: kernels.norm_of([x, few]),
        "scale_into": scale_into,
        "multi_scale": lambda: kernels.multi_scale([x, few], 0.3, want_norms=True)[1],
        "embedding_grad": lambda: kernels.embedding_grad(x, ids, 60),
        "accumulate_weight_gradient": weight_gradient,
        "aten::sum": lambda: aten.sum(x),
        "aten::sum over rows": lambda: aten.sum(x, 0),
        "aten::mean over columns": lambda: aten.mean(x, 1),
        "products": lambda: torch.cat([matmul.product(a, b).flatten() for a, b in _products(dtype)]),
    }


def _products(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    shapes = ((1, 1, 4096), (16, 16, 4096), (3, 5, 20000), (256, 1024, 1024), (128, 512, 512))
    torch.manual_seed(3)
    return [(draw(m, k, dtype=dtype), draw(n, k, dtype=dtype).t()) for m, n, k in shapes]


def results(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [t.to("npu").requires_grad_() for t in inputs]
    out = function(*leaves)
    weight = torch.cos(torch.arange(out.numel())).reshape(out.shape).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]


def same(first: list[Tensor] | Tensor | list[float], other: list[Tensor] | Tensor | list[float]) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, other)
    if isinstance(first[0], float):
        return first == other
    return all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def check(call: Callable[[], list[Tensor] | Tensor | list[float]], name: str) -> None:
    for count in THREADS:
        with threads(count, deterministic=False):
            assert same(call(), call()), f"{name}: two calls on {count} threads differ"
    found = []
    for count in THREADS:
        with threads(count, deterministic=True):
            found.append(call())
    for count, other in zip(THREADS[1:], found[1:], strict=True):
        assert same(found[0], other), f"{name}: {THREADS[0]} and {count} threads differ"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(cases(torch.float32)))
def test_results_and_gradients(name, dtype):
    torch.manual_seed(0)
    function, inputs = cases(dtype)[name]
    check(lambda: results(function, inputs), name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(updates(torch.float32)))
def test_updates_and_sums(name, dtype):
    torch.manual_seed(0)
    check(updates(dtype)[name], name)


def test_every_kernel_is_here():
    public = {name for name in kernels.__all__ if not isinstance(getattr(kernels, name), type)}
    public -= {"force_isa", "isa", *MADE_OF_KERNELS}
    assert public <= {*cases(torch.float32), *updates(torch.float32)}
