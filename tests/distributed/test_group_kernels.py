"""Kernels of several ranks, around their operators, against float64 on one rank."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import ranks
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from mindspeed_ms.kernels.samples import OF_A_GROUP

pytestmark = pytest.mark.distributed

HEADS, GROUPS, DIM, VALUES, BATCH, ROWS = 4, 2, 16, 8, 2, 6


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
        found = ring_attention(*mine, Ranks(dist.group.WORLD, world, rank), causal, 0.3)
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


def _checked(rank, world, store):
    """torch's opcheck of the operators that take a group: their fakes give the shapes of `world` ranks."""
    import mindspeed_ms.patch  # noqa: F401 - the device
    from mindspeed_ms.kernels import parallel_linear  # noqa: F401 - the operators
    from mindspeed_ms.kernels.operator import OPERATORS

    ranks.init(rank, world, store)
    group = dist.group.WORLD.group_name
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for device in ("cpu", "npu"):
        for name, shapes in OF_A_GROUP.items():
            x, weight = (torch.randn(shape).to(device) for shape in shapes)
            torch.library.opcheck(OPERATORS[name].overload, (x, weight, group), test_utils=utils)
    dist.destroy_process_group()


def test_opcheck_of_operators_that_take_a_group():
    ranks.run(_checked, 2)


def _released(rank, world, store):
    import mindspeed_ms.patch  # noqa: F401
    from megatron.core import parallel_state
    from mindspeed_ms.kernels import parallel_linear

    ranks.init(rank, world, store)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=world)
    parallel_linear._group = "the first group that came"
    parallel_state.destroy_model_parallel()
    assert parallel_linear._group is None
    dist.destroy_process_group()


def test_a_destroyed_group_is_forgotten():
    ranks.run(_released, 2)
