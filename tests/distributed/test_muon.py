"""Newton-Schulz over matrices whose parts lie on ranks, against one rank's."""

import pytest
import ranks
import torch
import torch.distributed as dist
from mindspeed_ms.patches.stand_ins.emerging_optimizers.orthogonalized_optimizers.muon_utils import (
    newton_schulz_tp,
)

pytestmark = pytest.mark.distributed


def _compare(rank, size, store):
    ranks.init(rank, size, store)
    torch.manual_seed(2)
    for shape in ((8, 24), (24, 8)):
        matrix = torch.randn(shape)
        expected = newton_schulz_tp(matrix, 5, "quintic", None)
        for dim in (0, 1):
            part = matrix.chunk(size, dim)[rank].contiguous()
            found = newton_schulz_tp(part, 5, "quintic", dist.group.WORLD, dim, "duplicated")
            torch.testing.assert_close(found, expected.chunk(size, dim)[rank], rtol=1e-4, atol=1e-5)
        long = 0 if shape[0] > shape[1] else 1
        part = matrix.chunk(size, long)[rank].contiguous()
        found = newton_schulz_tp(part, 5, "quintic", dist.group.WORLD, long, "distributed")
        torch.testing.assert_close(found, expected.chunk(size, long)[rank], rtol=1e-4, atol=1e-5)
    dist.destroy_process_group()


def test_parts_of_a_matrix():
    ranks.run(_compare, 2)
