"""A mixture of experts over two ranks: gradients of the router's auxiliary losses, and tokens dropped.

The losses are held to their formulas in float64 over all tokens; the dropping, from router to combined
output, to Megatron's own unfused functions on plain CPU tensors, every expert in one process.
"""

import itertools

import pytest
import ranks
import torch
import torch.distributed as dist

pytestmark = pytest.mark.distributed

SEQUENCE, BATCH, HIDDEN, EXPERTS, TOPK = 12, 2, 16, 4, 2
COEFFICIENT = 0.3
LOSSES = {
    "aux_loss": {},
    "seq_aux_loss": {},
    "global_aux_loss": {},
    "none": {"moe_z_loss_coeff": COEFFICIENT},
}
LAYOUTS = {
    "tensor and sequence parallel": {"tensor_model_parallel_size": 2},
    "context parallel": {"context_parallel_size": 2},
}


def _config(**options):
    from megatron.core.transformer import TransformerConfig

    return TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=4,
        num_moe_experts=EXPERTS,
        moe_router_topk=TOPK,
        add_bias_linear=False,
        **options,
    )


def _draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _start(rank, world, store):
    import mindspeed_ms.patch  # noqa: F401 - before Megatron

    dist.init_process_group("nccl", store=store, rank=rank, world_size=world)


def _losses(rank, world, store):
    _start(rank, world, store)
    from megatron.core import parallel_state, tensor_parallel

    for layout, sizes in LAYOUTS.items():
        parallel_state.initialize_model_parallel(**sizes)
        tensor_parallel.model_parallel_cuda_manual_seed(1)
        for loss, fused in itertools.product(LOSSES, (False, True)):
            _compare_loss(
                rank, world, loss, {**sizes, "moe_router_fusion": fused}, f"{loss}, {layout}, {fused}"
            )
        parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def _compare_loss(rank, world, loss, options, what):
    """Gradients of this rank's tokens, and those of the weight summed over the ranks, to one rank's."""
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
    from megatron.core.transformer.moe.router import TopKRouter

    config = _config(
        sequence_parallel="tensor_model_parallel_size" in options,
        moe_router_load_balancing_type=loss,
        moe_aux_loss_coeff=0.0 if loss == "none" else COEFFICIENT,
        **LOSSES[loss],
        **options,
    )
    tokens, weight = _draw(SEQUENCE, BATCH, HIDDEN, seed=2), _draw(EXPERTS, HIDDEN, seed=3)
    wanted = _draw(SEQUENCE * BATCH, EXPERTS, seed=4)  # the gradient of the probabilities
    exact = [t.double().requires_grad_() for t in (tokens, weight)]
    _one_rank(loss, *exact, wanted.double()).backward()
    router = TopKRouter(config, get_default_pg_collection()).cuda()
    router.set_layer_number(1)
    with torch.no_grad():
        router.weight.copy_(weight)
    mine = tokens.chunk(world)[rank].cuda().requires_grad_()
    probs, chosen = router(mine)
    assert chosen.sum(1).eq(TOPK).all()
    (probs * wanted.chunk(world)[rank].cuda()).sum().backward()
    total = router.weight.grad.clone()
    dist.all_reduce(total)
    for got, one in ((mine.grad, exact[0].grad.chunk(world)[rank]), (total, exact[1].grad)):
        torch.testing.assert_close(
            got.cpu().double(), one, rtol=2e-5, atol=2e-6, msg=lambda m: f"{what}: {m}"
        )


def _one_rank(loss, tokens, weight, wanted):
    """The main loss and the auxiliary one, from their papers' formulas."""
    logits = tokens.flatten(0, 1) @ weight.t()
    values, indices = logits.topk(TOPK, -1)
    chosen = torch.zeros_like(logits).scatter(1, indices, 1.0)
    probs = torch.zeros_like(logits).scatter(1, indices, values.softmax(-1))
    main = (probs * wanted).sum()
    if loss == "none":  # ST-MoE's z-loss
        return main + COEFFICIENT * logits.logsumexp(-1).square().mean()
    # Switch Transformer's loss: experts * sum of (share of the choices * mean probability), of all tokens or
    # of each sequence.
    groups = BATCH if loss == "seq_aux_loss" else 1
    scores = logits.softmax(-1).view(SEQUENCE * BATCH // groups, groups, EXPERTS)
    shares = chosen.view_as(scores).mean(0) / TOPK
    return main + COEFFICIENT * EXPERTS * (shares * scores.mean(0)).sum(-1).mean()


def test_auxiliary_losses_give_the_gradients_of_one_rank():
    ranks.run(_losses, 2, timeout=250)


def _drops(rank, world, store):
    _start(rank, world, store)
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(expert_model_parallel_size=2)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    cases = itertools.product(("alltoall", "allgather"), ("probs", "position"), (False, True), (False, True))
    for dispatcher, policy, pad, fused in cases:
        config = _config(
            expert_model_parallel_size=2,
            moe_router_load_balancing_type="none",
            moe_aux_loss_coeff=0.0,
            moe_expert_capacity_factor=1.0,
            moe_token_dispatcher_type=dispatcher,
            moe_token_drop_policy=policy,
            moe_pad_expert_input_to_capacity=pad,
            moe_permute_fusion=fused,
        )
        _compare_drops(rank, world, config)
    dist.destroy_process_group()


def _compare_drops(rank, world, config):
    inputs = [_draw(SEQUENCE, BATCH, HIDDEN, seed=5 + r) for r in range(world)]
    gradients = [_draw(SEQUENCE, BATCH, HIDDEN, seed=8 + r) for r in range(world)]
    weight, experts = _draw(EXPERTS, HIDDEN, seed=3), _draw(EXPERTS, HIDDEN, HIDDEN, seed=4)
    plain = [t.clone().requires_grad_() for t in (*inputs, weight, experts)]
    outs, rows = zip(*(_on_one_rank(x, *plain[world:], config) for x in plain[:world]), strict=True)
    router_gradient = torch.autograd.grad(outs[rank], plain[world], gradients[rank], retain_graph=True)[0]
    torch.autograd.backward(outs, gradients)
    local = slice(rank * EXPERTS // world, (rank + 1) * EXPERTS // world)
    expected = (outs[rank], plain[rank].grad, router_gradient, plain[-1].grad[local])
    mine = [t.cuda().requires_grad_() for t in (inputs[rank], weight, experts[local])]
    out, received = _on_ranks(*mine, config)
    assert received == [sum(counts[e] for counts in rows) for e in range(EXPERTS)][local]
    found = (out, *torch.autograd.grad(out, mine, gradients[rank].cuda()))
    for name, got, one in zip(("output", "tokens", "router", "experts"), found, expected, strict=True):
        torch.testing.assert_close(
            got.cpu(), one.detach(), rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n} of {config}: {m}"
        )


def _on_one_rank(tokens, weight, experts, config):
    """One rank's tokens through all experts: the output and how many rows each expert had."""
    from megatron.core.transformer.moe import moe_utils

    flat, pad = tokens.flatten(0, 1), config.moe_pad_expert_input_to_capacity
    probs, routed = moe_utils.topk_routing_with_score_function(flat @ weight.t(), TOPK)
    factor = config.moe_expert_capacity_factor
    probs, kept = moe_utils.apply_router_token_dropping(
        probs, routed, TOPK, factor, config.moe_token_drop_policy, pad
    )
    assert (routed & ~kept).any(), "the case shows nothing: no token was dropped"
    assert (kept & ~routed).any() == pad
    counts = kept.sum(0).tolist()
    rows, row_probs, order, *_ = moe_utils.permute(
        flat, kept, probs=probs, num_out_tokens=sum(counts), drop_and_pad=pad
    )
    parts = rows.split(counts)
    rows = torch.cat([part @ expert for part, expert in zip(parts, experts, strict=True)])
    rows = rows * row_probs.unsqueeze(-1)
    out = moe_utils.unpermute(rows, order, flat.shape, routing_map=kept, drop_and_pad=pad)
    return out.view_as(tokens), counts


def _on_ranks(tokens, weight, experts, config):
    """The same by Megatron's router and dispatcher, two experts on this rank."""
    from megatron.core.transformer.moe import token_dispatcher
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
    from megatron.core.transformer.moe.router import TopKRouter

    groups = get_default_pg_collection()
    router = TopKRouter(config, groups).cuda()
    router.set_layer_number(1)
    kinds = {
        "alltoall": token_dispatcher.MoEAlltoAllTokenDispatcher,
        "allgather": token_dispatcher.MoEAllGatherTokenDispatcher,
    }
    here = list(range(groups.ep.rank() * experts.shape[0], (groups.ep.rank() + 1) * experts.shape[0]))
    dispatcher = kinds[config.moe_token_dispatcher_type](len(here), here, config, groups)
    del router.weight  # a parameter; the caller's leaf takes its place
    router.weight = weight
    probs, routed = router(tokens)
    rows, row_probs = dispatcher.dispatch_preprocess(tokens, routed, probs)
    rows, row_probs = dispatcher.token_dispatch(rows, row_probs)
    rows, counts, row_probs = dispatcher.dispatch_postprocess(rows, row_probs)
    counts = counts.tolist()
    parts = rows.split(counts)
    rows = torch.cat([part @ expert for part, expert in zip(parts, experts, strict=True)])
    rows = dispatcher.combine_preprocess(rows * row_probs.unsqueeze(-1))
    return dispatcher.combine_postprocess(dispatcher.token_combine(rows)), counts


def test_dropped_tokens_are_those_of_one_rank():
    ranks.run(_drops, 2, timeout=250)
