"""The stand-in for emerging_optimizers: its steps against their formulas, Megatron's Muon on it."""

import importlib.util
import subprocess
import sys
import textwrap

import pytest
import torch
from mindspeed_ms.kernels.muon import COEFFICIENTS
from mindspeed_ms.patches.stand_ins.emerging_optimizers.orthogonalized_optimizers import (
    OrthogonalizedOptimizer,
    get_muon_scale_factor,
)
from mindspeed_ms.patches.stand_ins.emerging_optimizers.orthogonalized_optimizers.muon_utils import (
    newton_schulz_tp,
)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", ["decoupled", "l2"])
def test_steps(nesterov, decay):
    torch.manual_seed(0)
    start, grads = torch.randn(6, 4), torch.randn(3, 6, 4)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = OrthogonalizedOptimizer(
        [parameter],
        0.1,
        0.9,
        0.01,
        use_nesterov=nesterov,
        weight_decay_method=decay,
        fp32_matmul_prec="high",
        scaled_orthogonalize_fn=lambda update: 2.0 * update,
    )
    expected, momentum = start.double(), torch.zeros(6, 4, dtype=torch.float64)
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
        exact = grad.double()
        if decay == "l2":
            exact = exact + 0.01 * expected
        else:
            expected = expected * (1 - 0.01 * 0.1)
        momentum = 0.9 * momentum + 0.1 * exact
        update = 0.1 * exact + 0.9 * momentum if nesterov else momentum
        expected = expected - 0.1 * 2.0 * update
        assert torch.equal(parameter.grad, grad)  # l2 decay is not left in the gradient
    torch.testing.assert_close(parameter.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(COEFFICIENTS))
def test_iteration_acts_on_the_singular_values(name):
    torch.manual_seed(1)
    matrix = torch.randn(24, 10)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for step in range(7):
        a, b, c = COEFFICIENTS[name][step % len(COEFFICIENTS[name])]
        s = a * s + b * s**3 + c * s**5
    found = newton_schulz_tp(matrix, 7, name, None)
    torch.testing.assert_close(found.double(), u @ torch.diag(s) @ vh, rtol=1e-4, atol=1e-5)


def test_what_it_does_not_know_is_refused():
    assert get_muon_scale_factor(16, 4, "unit_rms_norm") == 2.0
    with pytest.raises(ValueError, match="spectral"):
        get_muon_scale_factor(2, 2, "none")
    with pytest.raises(ValueError, match="unknown coefficients"):
        newton_schulz_tp(torch.randn(2, 2), 1, "cans", None)


@pytest.mark.skipif(
    importlib.util.find_spec("megatron.core.optimizer.emerging_optimizers") is not None,
    reason="this Megatron-Core builds Muon on PyPI's emerging-optimizers, whose names the stand-in lacks",
)
def test_megatrons_muon_is_built_on_it():
    program = """
        import mindspeed_ms.patch
        import torch
        from megatron.core.optimizer import muon
        assert muon.HAVE_EMERGING_OPTIMIZERS
        weight = torch.nn.Parameter(torch.randn(12, 8, device="cuda"))
        before = weight.detach().clone()
        options = {"lr": 0.1, "weight_decay": 0.0, "use_nesterov": False, "mode": "blockwise"}
        optimizer = muon.TensorParallelMuon([weight], **options)
        weight.grad = torch.randn(12, 8, device="cuda")
        optimizer.step()
        values = torch.linalg.svdvals((before - weight.detach()).cpu() / 0.1 / 12**0.5)
        assert 0.5 < values.min() and values.max() < 1.3, values
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
