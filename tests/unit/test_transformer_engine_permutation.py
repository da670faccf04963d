"""The stand-in's token permutation against Megatron's own, unfused one."""

import mindspeed_ms.patch  # noqa: F401
import pytest
import torch
from mindspeed_ms.patches.stand_ins.transformer_engine.pytorch import permutation

TOKENS, HIDDEN, EXPERTS = 7, 8, 4


@pytest.fixture
def routed():
    generator = torch.Generator().manual_seed(5)
    tokens = torch.rand(TOKENS, HIDDEN, generator=generator).cuda().requires_grad_()
    routing_map = (torch.rand(TOKENS, EXPERTS, generator=generator) > 0.4).cuda()
    probs = (torch.rand(TOKENS, EXPERTS, generator=generator).cuda() * routing_map).requires_grad_()
    return tokens, probs, routing_map


def test_there_and_back_with_gradients(routed):
    from megatron.core.transformer.moe.moe_utils import permute, unpermute

    tokens, probs, routing_map = routed
    count = int(routing_map.sum())
    expected, expected_probs, order, *_ = permute(tokens, routing_map, probs=probs, num_out_tokens=count)
    permuted, row_probs, rows = permutation.moe_permute_with_probs(tokens, probs, routing_map, count)
    assert torch.equal(permuted, expected)
    assert torch.equal(row_probs, expected_probs)
    for weights in (None, probs):
        back = permutation.moe_unpermute(permuted * 2, rows, weights, tokens.shape)
        wanted = unpermute(expected * 2, order, tokens.shape, probs=weights, routing_map=routing_map)
        torch.testing.assert_close(back, wanted)
        inputs = [tokens] if weights is None else [tokens, probs]
        for ours, theirs in zip(
            torch.autograd.grad(back.square().sum(), inputs, retain_graph=True),
            torch.autograd.grad(wanted.square().sum(), inputs, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)


def test_without_probabilities_and_shortened(routed):
    tokens, _, routing_map = routed
    permuted, rows = permutation.moe_permute(tokens, routing_map, num_out_tokens=3)
    assert torch.equal(permuted, tokens[routing_map[:, 0]][:3])
    assert rows.shape == (2, 3)
    with pytest.raises(NotImplementedError, match="give a mask"):
        permutation.moe_permute(tokens, routing_map, map_type="index")


def test_chunks():
    rows, probs = torch.arange(6.0, device="cuda").view(6, 1), torch.rand(6, device="cuda")
    sizes, order = torch.tensor([1, 2, 3]), torch.tensor([2, 0, 1])
    out, out_probs = permutation.moe_sort_chunks_by_index_with_probs(rows, probs, sizes, order)
    index = torch.tensor([3, 4, 5, 0, 1, 2], device="cuda")
    assert torch.equal(out, rows[index])
    assert torch.equal(out_probs, probs[index])
    assert torch.equal(permutation.moe_sort_chunks_by_index(rows, sizes, order), rows[index])
