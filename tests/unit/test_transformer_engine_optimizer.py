"""FusedAdam of the stand-in for Transformer Engine: the steps of torch's Adam, its state, its refusals."""

import copy

import mindspeed_ms.patch  # noqa: F401
import pytest
import torch
from mindspeed_ms.patches.stand_ins.transformer_engine.pytorch.optimizers import FusedAdam

DECAY = 0.1


def parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(n, 5, generator=generator)) for n in (3, 40)]


def train(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        for index, p in enumerate(params):
            p.grad = torch.sin(p.detach() * (index + 1) + step)
        optimizer.step()


@pytest.mark.parametrize(("decoupled", "reference"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)])
def test_steps_are_those_of_torch(decoupled, reference):
    ours, theirs = parameters(), parameters()
    fused = FusedAdam([{"params": ours}, {"params": []}], lr=0.01, adam_w_mode=decoupled, weight_decay=DECAY)
    train(fused, ours, range(5))
    train(reference(theirs, lr=0.01, weight_decay=DECAY), theirs, range(5))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert fused.param_groups[0]["step"] == 5
    assert "step" not in fused.param_groups[1]
    assert set(fused.state[ours[0]]) == {"exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("writer", [FusedAdam, torch.optim.AdamW])
def test_resumes_from_its_own_state_and_from_that_of_torch(writer):
    whole, first = parameters(), parameters()
    straight = FusedAdam(whole, lr=0.01, weight_decay=DECAY)
    train(straight, whole, range(6))
    before = writer(first, lr=0.01, weight_decay=DECAY)
    train(before, first, range(3))
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    after = FusedAdam(second, lr=0.5)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    assert after.param_groups[0]["step"] == 3
    train(after, second, range(3, 6))
    for a, b in zip(second, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_16_bits_have_state_and_arithmetic_of_32(dtype):
    """In 16 bits eps vanishes beside nothing: the first update of an element without gradient was NaN."""
    exact = [torch.nn.Parameter(p.detach().to(dtype).double()) for p in parameters()]
    ours, torchs = ([torch.nn.Parameter(p.detach().to(dtype)) for p in exact] for _ in range(2))
    fused = FusedAdam(ours, lr=0.01, weight_decay=DECAY)
    others = [torch.optim.AdamW(p, lr=0.01, weight_decay=DECAY, fused=True) for p in (exact, torchs)]
    for step in range(8):
        for index, triple in enumerate(zip(exact, ours, torchs, strict=True)):
            grad = torch.sin(triple[0].detach() * (index + 1) + step).to(dtype)
            grad[0] = 0.0
            for p in triple:
                p.grad = grad.to(p.dtype)
        for optimizer in (fused, *others):
            optimizer.step()
    for e, o, t in zip(exact, ours, torchs, strict=True):
        assert fused.state[o]["exp_avg"].dtype == fused.state[o]["exp_avg_sq"].dtype == torch.float32
        assert (o.double() - e).abs().max() <= (t.double() - e).abs().max()
    again = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    loaded = FusedAdam(again)
    loaded.load_state_dict(copy.deepcopy(fused.state_dict()))
    for p, o in zip(again, ours, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert loaded.state[p][name].dtype == torch.float32
            assert torch.equal(loaded.state[p][name], fused.state[o][name])


def test_state_is_empty_before_the_first_step():
    optimizer = FusedAdam(parameters())
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(optimizer.state) == 0


def test_parameters_without_gradient_stay():
    used, unused = parameters()
    before = unused.detach().clone()
    optimizer = FusedAdam([used, unused], weight_decay=DECAY)
    used.grad = torch.ones_like(used)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert torch.equal(unused, before)
    # state as in Transformer Engine, which makes it before it looks for the gradient
    assert not optimizer.state[unused]["exp_avg"].any()


@pytest.mark.parametrize(
    "options", [{"amsgrad": True}, {"exp_avg_dtype": torch.bfloat16}, {"master_weights": True}]
)
def test_what_it_does_not_have_is_refused(options):
    with pytest.raises(NotImplementedError, match=next(iter(options))):
        FusedAdam(parameters(), **options)
