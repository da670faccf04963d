"""The stand-ins for mamba_ssm and causal_conv1d against the recurrence, token by token in float64."""

import itertools
import subprocess
import sys

import pytest
import torch
from mindspeed_ms.patches.stand_ins.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from mindspeed_ms.patches.stand_ins.causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states
from mindspeed_ms.patches.stand_ins.mamba_ssm.ops.triton.layernorm_gated import RMSNorm
from mindspeed_ms.patches.stand_ins.mamba_ssm.ops.triton.selective_state_update import selective_state_update
from mindspeed_ms.patches.stand_ins.mamba_ssm.ops.triton.ssd_combined import (
    mamba_chunk_scan_combined,
    mamba_split_conv1d_scan_combined,
)
from torch.nn import functional

HEADS, GROUPS, P, N = 4, 2, 3, 5


def inputs(length, batch=2, seed=0):
    torch.manual_seed(seed)
    return {
        "x": torch.randn(batch, length, HEADS, P),
        "dt": torch.randn(batch, length, HEADS),
        "A": -torch.rand(HEADS) * 2,
        "B": torch.randn(batch, length, GROUPS, N),
        "C": torch.randn(batch, length, GROUPS, N),
    }


def recurrence(x, dt, A, B, C, D, bias, state=None):
    """y and last state for one sequence after another in the batch; dt before bias and softplus."""
    x, dt, A, B, C, D, bias = (t.double() for t in (x, dt, A, B, C, D, bias))
    dt = functional.softplus(dt + bias)
    h = torch.zeros(x.shape[0], HEADS, P, N, dtype=torch.float64) if state is None else state.double()
    ys = []
    for t in range(x.shape[1]):
        b, c = (s[:, t].repeat_interleave(HEADS // GROUPS, 1) for s in (B, C))
        h = h * (dt[:, t] * A).exp()[..., None, None]
        h = h + torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], b)
        ys.append(torch.einsum("bhpn,bhn->bhp", h, c) + D[:, None] * x[:, t])
    return torch.stack(ys, 1), h


def close(ours, exact, tolerance=1e-5):
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chunk", [4, 7, 32])
def test_scan_and_its_gradients(chunk):
    given, skip, bias, z = inputs(13), torch.randn(HEADS), torch.randn(HEADS), torch.randn(2, 13, HEADS, P)
    state = torch.randn(2, HEADS, P, N)
    leaves = {name: t.clone().requires_grad_() for name, t in given.items()}
    y, last = mamba_chunk_scan_combined(
        **leaves,
        chunk_size=chunk,
        D=skip,
        z=z,
        dt_bias=bias,
        dt_softplus=True,
        initial_states=state,
        return_final_states=True,
        state_dtype=torch.bfloat16,  # they stay float32
    )
    exact_leaves = {name: t.double().requires_grad_() for name, t in given.items()}
    exact, exact_last = recurrence(**exact_leaves, D=skip, bias=bias, state=state)
    exact = exact * functional.silu(z.double())
    close(y, exact)
    close(last, exact_last)
    (y.square().sum() + last.sum()).backward()
    (exact.square().sum() + exact_last.sum()).backward()
    for name, leaf in leaves.items():
        close(leaf.grad, exact_leaves[name].grad, 2e-4)


def test_packed_sequences_are_what_each_is_alone():
    lengths = [5, 1, 0, 9]
    sums = torch.tensor([0, *lengths]).cumsum(0).int()
    given, skip, bias = inputs(17, batch=1, seed=1), torch.randn(HEADS), torch.randn(HEADS)
    for name in ("x", "dt", "B", "C"):
        given[name][:, 15:] = float("nan")  # padding: what inference leaves there is anything
    index = torch.tensor([0] * 5 + [1] + [3] * 9 + [-1] * 2).unsqueeze(0)
    y, _, states = mamba_chunk_scan_combined(
        **given,
        chunk_size=4,
        D=skip,
        dt_bias=bias,
        dt_softplus=True,
        seq_idx=index,
        cu_seqlens=sums,
        return_final_states=True,
        return_varlen_states=True,
    )
    for i, (begin, end) in enumerate(itertools.pairwise(sums.tolist())):
        if begin == end:
            assert not states[i].any()
            continue
        alone = {name: t if name == "A" else t[:, begin:end] for name, t in given.items()}
        exact, last = recurrence(**alone, D=skip, bias=bias)
        close(y[:, begin:end], exact)
        close(states[i : i + 1], last)


def test_one_token_after_another_is_the_scan():
    given, skip, bias = inputs(6, seed=2), torch.randn(HEADS), torch.randn(HEADS)
    exact, last = recurrence(**given, D=skip, bias=bias)
    states = torch.full((4, HEADS, P, N), 7.0)
    states[[3, 1]] = 0.0
    rows = torch.tensor([3, -1, 1])
    wide = {"A": given["A"][:, None, None].expand(-1, P, N), "D": skip[:, None].expand(-1, P)}
    for t in range(6):
        one = {name: given[name][:, t] for name in ("x", "dt", "B", "C")}
        one["dt"] = one["dt"].unsqueeze(-1).expand(-1, -1, P)
        one = {name: s[[0, 0, 1]] for name, s in one.items()}  # the second has no row: its result is zero
        y = selective_state_update(
            states,
            **one,
            **wide,
            dt_bias=bias[:, None].expand(-1, P),
            dt_softplus=True,
            state_batch_indices=rows,
        )
        close(y[[0, 2]], exact[:, t])
        assert not y[1].any()
    close(states[[3, 1]], last)
    assert (states[[0, 2]] == 7.0).all()


def test_convolution_whole_packed_and_step_by_step():
    torch.manual_seed(3)
    x, weight, bias = torch.randn(2, 6, 9), torch.randn(6, 4), torch.randn(6)
    conv = functional.conv1d(x.double(), weight.double().unsqueeze(1), bias.double(), padding=3, groups=6)
    exact = functional.silu(conv[..., :9])
    close(causal_conv1d_fn(x, weight, bias, activation="silu"), exact)
    close(
        causal_conv1d_fn(x[..., 4:], weight, bias, initial_states=x[..., 1:4], activation="silu"),
        exact[..., 4:],
    )
    index = torch.tensor([[0] * 4 + [1] * 5, [0] * 2 + [3] * 7])
    packed = causal_conv1d_fn(x, weight, bias, seq_idx=index, activation="silu")
    for row, cut in ((0, 4), (1, 2)):
        close(packed[row : row + 1, :, :cut], exact[row : row + 1, :, :cut])
        alone = causal_conv1d_fn(x[row : row + 1, :, cut:], weight, bias, activation="silu")
        close(packed[row : row + 1, :, cut:], alone.double())
    state = torch.zeros(3, 6, 4)
    steps = [
        causal_conv1d_update(x[..., t], state, weight, bias, "silu", conv_state_indices=torch.tensor([2, 0]))
        for t in range(9)
    ]
    close(torch.stack(steps, -1), exact)
    assert torch.equal(state[2], x[0, :, -4:])
    assert not state[1].any()
    tails = causal_conv1d_varlen_states(x[0].t(), torch.tensor([0, 2, 9]), 4)
    assert torch.equal(tails[1], x[0, :, 5:])
    assert torch.equal(tails[0, :, 2:], x[0, :, :2])
    assert not tails[0, :, :2].any()


def test_whole_layer():
    torch.manual_seed(4)
    inner, length = HEADS * P, 10
    wide = torch.randn(2, length, 2 * inner + 2 * GROUPS * N + HEADS)
    weight, bias = torch.randn(inner + 2 * GROUPS * N, 4), torch.randn(inner + 2 * GROUPS * N)
    a, skip, dt_bias = -torch.rand(HEADS), torch.randn(HEADS), torch.randn(HEADS)
    y = mamba_split_conv1d_scan_combined(
        wide, weight, bias, dt_bias, a, skip, 4, headdim=P, ngroups=GROUPS, norm_before_gate=False
    )
    z, xbc, dt = wide.double().split((inner, inner + 2 * GROUPS * N, HEADS), -1)
    conv = functional.conv1d(xbc.mT, weight.double().unsqueeze(1), bias.double(), padding=3, groups=len(bias))
    x, b, c = functional.silu(conv[..., :length]).mT.split((inner, GROUPS * N, GROUPS * N), -1)
    parts = (x.unflatten(-1, (HEADS, P)), dt, a, b.unflatten(-1, (GROUPS, N)), c.unflatten(-1, (GROUPS, N)))
    exact, _ = recurrence(*parts, skip, dt_bias)
    close(y, exact.flatten(2) * functional.silu(z))


@pytest.mark.parametrize("norm_first", [False, True])
def test_gated_norm(norm_first):
    torch.manual_seed(5)
    norm = RMSNorm(12, group_size=4, norm_before_gate=norm_first)
    torch.nn.init.normal_(norm.weight)
    x, z = torch.randn(3, 12), torch.randn(3, 12)
    gate, wide = functional.silu(z.double()), x.double()
    parts = (wide if norm_first else wide * gate).view(3, 3, 4)
    exact = functional.rms_norm(parts, (4,), eps=1e-5).flatten(1) * norm.weight.double()
    close(norm(x, z), exact * gate if norm_first else exact)


def test_what_is_not_implemented_says_so():
    with pytest.raises(NotImplementedError, match="return_final_states"):
        causal_conv1d_fn(torch.zeros(1, 2, 3), torch.zeros(2, 4), return_final_states=True)
    with pytest.raises(NotImplementedError, match="gelu"):
        causal_conv1d_fn(torch.zeros(1, 2, 3), torch.zeros(2, 4), activation="gelu")


def test_megatron_finds_them():
    script = """
import mindspeed_ms.patch
from megatron.core.ssm import mamba_mixer
assert mamba_mixer.HAVE_MAMBA_SSM
assert mamba_mixer._check_mamba_sequence_packing_support() == (True, None)
import inspect
norm = mamba_mixer.ExtendedRMSNorm.__mro__[1]
assert norm.__module__ == "mamba_ssm.ops.triton.layernorm_gated"
assert "stand_ins/mamba_ssm" in inspect.getfile(norm)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
