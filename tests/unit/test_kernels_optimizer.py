"""Optimizer steps and multi-tensor operations against torch's optimizers in float64."""

import math

import pytest
import torch
from kernel_checks import ISAS, assert_as_good_as_torch, isa
from mindspeed_ms import kernels

SHAPES = [(50000,), (7, 3), (1,), (0,), (130, 17)]


def tensors(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(s).to(dtype) for s in SHAPES]


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adam(name, decoupled, grad_dtype):
    torch.manual_seed(0)
    params = tensors()
    options = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    references = [[p.to(d).clone().requires_grad_() for p in params] for d in (torch.float64, torch.float32)]
    optimizers = [kind(r, **options) for r in references]
    exp_avgs, exp_avg_sqs = ([torch.zeros_like(p) for p in params] for _ in range(2))
    copies = [p.bfloat16() for p in params]
    for step in range(1, 6):
        grads = tensors(grad_dtype)
        with isa(name):
            kernels.adam_step(
                params, [g * 4 for g in grads], exp_avgs, exp_avg_sqs, step=step, decoupled=decoupled,
                grad_scale=0.25, copies=copies, **options,
            )  # fmt: skip
        for reference, optimizer in zip(references, optimizers, strict=True):
            for p, g in zip(reference, grads, strict=True):
                p.grad = g.to(p.dtype)
            optimizer.step()
    for i, p in enumerate(params):
        assert_as_good_as_torch(p, references[1][i].detach(), references[0][i].detach(), f"parameter {i}")
        # The moments decay by beta rounded to fp32, where torch interpolates: 3 units in the last place.
        state, torchs = (o.state[r[i]] for o, r in zip(optimizers, references, strict=True))
        assert_as_good_as_torch(exp_avgs[i], torchs["exp_avg"], state["exp_avg"], "exp_avg", slack=6.0)
        assert_as_good_as_torch(
            exp_avg_sqs[i], torchs["exp_avg_sq"], state["exp_avg_sq"], "exp_avg_sq", slack=6.0
        )
        assert torch.equal(copies[i], p.bfloat16())


def test_adam_in_float64_equals_torch():
    torch.manual_seed(0)
    p, reference = (torch.linspace(-1, 1, 12, dtype=torch.float64) for _ in range(2))
    reference.requires_grad_()
    optimizer = torch.optim.AdamW([reference], lr=0.1, maximize=True)
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for step in (1, 2, 3):
        g = torch.randn_like(p)
        kernels.adam_step([p], [g], [m], [v], step=step, lr=0.1, weight_decay=0.01, maximize=True)
        reference.grad = g
        optimizer.step()
    torch.testing.assert_close(p, reference.detach(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd(name, momentum, nesterov):
    torch.manual_seed(0)
    params = tensors()
    reference = [p.double().requires_grad_() for p in params]
    options = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.05}
    optimizer = torch.optim.SGD(reference, **options)
    buffers = [torch.zeros_like(p) for p in params]
    for step in range(3):
        grads = tensors()
        with isa(name):
            kernels.sgd_step(params, grads, buffers, first=step == 0, **options)
        for p, g in zip(reference, grads, strict=True):
            p.grad = g.double()
        optimizer.step()
    for p, r in zip(params, reference, strict=True):
        torch.testing.assert_close(p.double(), r.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ISAS)
def test_scale_norm_and_found_inf_in_one_pass(name):
    torch.manual_seed(0)
    inputs = tensors() + tensors(torch.bfloat16)
    outputs = [torch.empty(x.shape) for x in inputs]
    with isa(name):
        found, norms = kernels.multi_scale(inputs, 0.5, outputs, want_norms=True)
        assert not found
        for x, y, norm in zip(inputs, outputs, norms, strict=True):
            assert torch.equal(y, x.float() * 0.5)
            assert norm == pytest.approx(0.5 * x.double().norm().item(), rel=1e-5)
        total = math.sqrt(sum(x.double().square().sum().item() for x in inputs))
        assert kernels.l2_norm(inputs) == pytest.approx(total, rel=1e-5)
        for value in (float("inf"), -float("inf"), float("nan")):
            flawed = tensors()
            flawed[4][129, 16] = value
            found, norms = kernels.multi_scale(flawed, 1.0, want_norms=True)
            assert found
            assert not math.isfinite(norms[4])
            assert math.isfinite(norms[0])


def test_clip_is_megatrons():
    grads = [torch.full((4,), 3.0), torch.full((9,), 4.0)]
    norm = kernels.l2_norm(grads)
    assert norm == pytest.approx(math.sqrt(4 * 9 + 9 * 16))
    kernels.clip_by_norm_(grads, 100.0, norm)
    assert grads[0][0] == 3.0
    kernels.clip_by_norm_(grads, 1.0, norm)
    assert kernels.l2_norm(grads) == pytest.approx(1.0, rel=1e-5)


def test_permuted_layout_stays_native_and_right():
    torch.manual_seed(0)
    p, g, m, v = (torch.randn(6, 5).t() for _ in range(4))
    v.abs_()
    expected = [x.contiguous() for x in (p, g, m, v)]
    kernels.adam_step([p], [g], [m], [v], step=1, lr=0.1)
    kernels.adam_step(*([x] for x in expected), step=1, lr=0.1)
    assert torch.equal(p, expected[0])


def test_lists_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="lists of 2 and 1"):
        kernels.adam_step(tensors()[:2], tensors()[:1], [], [], step=1, lr=0.1)
    with pytest.raises(ValueError, match="step counts from 1"):
        kernels.adam_step([], [], [], [], step=0, lr=0.1)


def test_newton_schulz_orthogonalises():
    torch.manual_seed(0)
    for shape in [(64, 32), (32, 64), (3, 16, 40)]:
        matrix = torch.randn(shape)
        values = torch.linalg.svdvals(kernels.newton_schulz(matrix, steps=8, dtype=torch.float32))
        # Jordan et al.: the quintic's singular values end between 0.68 and 1.13.
        assert values.min() > 0.6
        assert values.max() < 1.25
        u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
        result = kernels.newton_schulz(matrix.double(), dtype=torch.float64)
        ((a, b, c),) = kernels.optimizer.NEWTON_SCHULZ
        s = s / (s.square().sum(-1, keepdim=True).sqrt() + 1e-7)
        for _ in range(5):
            s = a * s + b * s**3 + c * s**5
        torch.testing.assert_close(result, u @ torch.diag_embed(s) @ vh, rtol=1e-5, atol=1e-6)
