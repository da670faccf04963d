"""Kernels where the target is Ascend: every form called by its kernel, forward and backward, in a dry run.

The dry run (MINDSPEED_MS_KERNELS=ascend on the CPU target) sends the Ascend operators through MindSpore's
inference: shapes and dtypes are theirs, values are zeros. Shapes and dtypes that the kernels promise are
those of the csrc kernels. tests/conformance/test_opaque.py runs this file again on opaque memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mindspeed_ms.patch  # noqa: F401 - the device
import pytest
import torch
from mindspeed_ms import _runtime, kernels
from mindspeed_ms.kernels import dispatch
from mindspeed_ms.kernels.activation import ACTIVATIONS
from mindspeed_ms.kernels.rope import LAYOUTS
from mindspeed_ms.kernels.weight_gradient import accumulate_weight_gradient

from tests.conformance import ascend_table

pytest.importorskip("mindspore", reason="the Ascend forms are MindSpore's")

BF16, F32 = torch.bfloat16, torch.float32


@contextmanager
def implementation(name: str) -> Iterator[None]:
    kernels.force_implementation(name)
    try:
        yield
    finally:
        kernels.force_implementation(None)


def draw(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(shape, dtype=F32).to(dtype)


@dataclass
class Case:
    kernel: str
    call: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
    inputs: tuple[torch.Tensor, ...]
    differentiable: bool = True
    whole: bool = True
    """Whether all of it is the form's work, and not torch's beside it."""


def rows_of(tokens: int, experts: int) -> torch.Tensor:
    return torch.arange(tokens) % experts


#: Kernels of several ranks, which tests/distributed/test_ascend_forms.py calls.
OF_A_GROUP = ("ring_step", "ring_merge", "column_linear", "row_linear")

IDS = torch.tensor([0, 3, 7, 3, 30, 1, 2, 5])
ANGLES = torch.randn(8, 1, 1, 64)
FEW = torch.randn(8, 1, 1, 16)
MASK = torch.ones(2, 1, 5, 7, dtype=torch.bool)
QUERY, KEY, VALUE = (8, 2, 4, 64), (8, 2, 2, 64), (8, 2, 2, 32)
PACKED = (draw(20, 4, 64), draw(20, 2, 64), draw(20, 2, 64))
ENDS = torch.tensor([0, 5, 20])
MAP = torch.zeros(10, 5, dtype=torch.bool)
MAP[torch.arange(20) // 2, torch.arange(20) * 2 % 5] = True
"""Two experts for every token."""


def attention(*shapes: tuple[int, ...], **options) -> Case:
    return Case(
        "attention",
        lambda q, k, v: kernels.attention(q, k, v, **options),
        tuple(draw(*shape) for shape in shapes),
    )


CASES = [
    Case("rms_norm", lambda x, w: kernels.rms_norm(x, w, zero_centered=True), (draw(4, 2, 64), draw(64))),
    Case("rms_norm", lambda x: kernels.rms_norm(x), (draw(4, 2, 64, dtype=F32),)),
    Case("rms_norm", lambda x, w: kernels.rms_norm(x, w), (draw(4, 2, 64), draw(64, dtype=F32))),
    Case("rms_norm", lambda x, w, r: kernels.rms_norm(x, w, residual=r),
         (draw(4, 2, 64), draw(64), draw(4, 2, 64))),
    Case("layer_norm", lambda x, w, b: kernels.layer_norm(x, w, b), (draw(4, 2, 64), draw(64), draw(64))),
    Case("layer_norm", lambda x, r: kernels.layer_norm(x, residual=r), (draw(4, 64), draw(4, 64))),
    *(Case("bias_activation", lambda x, b, name=name: kernels.bias_activation(x, b, name),
           (draw(4, 2, 64), draw(64))) for name in ACTIVATIONS),
    *(Case("bias_glu", lambda x, name=name: kernels.bias_glu(x, None, name), (draw(4, 2, 64),))
      for name in ACTIVATIONS),
    Case("bias_glu",
         lambda x, b, w: kernels.bias_glu(x, b, "quick_gelu", weights=w, linear_offset=1.0, clamp=7.0),
         (draw(8, 64), draw(64), draw(8, dtype=F32))),
    Case("bias_dropout_add", lambda x, b, r: kernels.bias_dropout_add(x, b, r, 0.1),
         (draw(4, 2, 64), draw(64), draw(4, 2, 64))),
    Case("bias_dropout_add", lambda x, r: kernels.bias_dropout_add(x, None, r, 0.1, training=False),
         (draw(4, 2, 64), draw(4, 2, 64))),
    Case("scaled_softmax", lambda x: kernels.scaled_softmax(x, None, 0.5, causal=True), (draw(2, 3, 5, 7),)),
    Case("scaled_softmax", lambda x: kernels.scaled_softmax(x, MASK.to(x.device), 0.5), (draw(2, 3, 5, 7),)),
    *(Case("rope", lambda x, layout=layout: kernels.rope(x, ANGLES.to(x.device), layout),
           (draw(8, 2, 4, 64),)) for layout in LAYOUTS),
    Case("rope", lambda x: kernels.rope(x, ANGLES[..., :32].to(x.device)), (draw(8, 4, 64),)),
    Case("rope", lambda x: kernels.latent_query(x, FEW.to(x.device), FEW.to(x.device)),
         (draw(8, 2, 4, 48),), whole=False),
    Case("rope", lambda kv, p: kernels.latent_key_value(kv, p, FEW.to(kv.device), FEW.to(kv.device), 32),
        (draw(8, 2, 4, 80), draw(8, 2, 1, 16)), whole=False),
    *(Case("vocab_parallel_cross_entropy",
           lambda x, share=share: kernels.vocab_parallel_cross_entropy(x, IDS.view(4, 2).to(x.device), share),
           (draw(4, 2, 32, dtype=dtype),)) for dtype, share in ((F32, 0.1), (BF16, 0.0))),
    Case("vocab_parallel_cross_entropy",
         lambda x, w: kernels.linear_cross_entropy(x, w, IDS.to(x.device)), (draw(8, 16), draw(32, 16))),
    attention(QUERY, KEY, VALUE, causal=True),
    attention(QUERY, KEY, VALUE, causal=True, window=(3, 0), dropout=0.125),
    attention((2, 8, 4, 64), (2, 10, 2, 64), (2, 10, 2, 64), layout="bshd"),
    attention((2, 4, 8, 64), (2, 2, 8, 64), (2, 2, 8, 64), layout="bhsd", window=(2, 3)),
    Case("attention", lambda q, k, v: kernels.attention(
        q, k, v, mask=torch.zeros(2, 1, 1, 8, dtype=torch.bool, device=q.device), causal=True),
        (draw(*QUERY), draw(*KEY), draw(*KEY))),
    Case("attention", lambda q, k, v: kernels.attention(q, k, v, causal=True, cu_seqlens_q=ENDS), PACKED),
    Case("attention", lambda q, k, v: kernels.attention(q, k, v, cu_seqlens_q=ENDS, return_lse=True),
         PACKED, differentiable=False),
    Case("attention", lambda q, k, v: kernels.attention(q, k, v, return_lse=True),
         (draw(*QUERY), draw(*KEY), draw(*VALUE)), differentiable=False),
    Case("embedding_grad", lambda g: kernels.embedding_grad(g, IDS.to(g.device), 10), (draw(8, 32),), False),
    Case("accumulate_weight_gradient", lambda x, dy: _accumulated(x, dy), (draw(8, 32), draw(8, 16)), False),
    Case("topk_router", lambda x: kernels.topk_router(x, 4), (draw(10, 16),)),
    Case("topk_router", lambda x: kernels.topk_router(
        x, 4, score_function="sigmoid", groups=4, group_topk=2, scaling_factor=2.0,
        expert_bias=torch.ones(16, device=x.device)), (draw(10, 16, dtype=F32),)),
    Case("gather_rows", lambda x: kernels.gather_rows(x, rows_of(20, 10).to(x.device)), (draw(10, 32),)),
    Case("gather_rows", lambda x: kernels.gather_rows(x, rows_of(20, 10).to(x.device)),
         (draw(10, dtype=F32),)),
    Case("combine_rows", lambda x, w: kernels.combine_rows(x, rows_of(20, 10).to(x.device), 10, w),
         (draw(20, 32), draw(20, dtype=F32))),
    Case("permute", lambda x: kernels.permute(x, MAP.to(x.device))[0], (draw(10, 32),)),
    Case("unpermute", lambda x, p: _unpermuted(x, p), (draw(20, 32), draw(10, 5).abs()), whole=False),
    Case("unpermute", lambda x: _unpermuted(x, None), (draw(20, 32, dtype=F32),)),
    Case("grouped_matmul", lambda x, w: kernels.grouped_matmul(x, w, [4, 0, 16]),
         (draw(20, 32), draw(3, 32, 16))),
    Case("grouped_matmul", lambda x, *w: kernels.grouped_matmul(x, w, [4, 16], turned=True),
         (draw(20, 32), draw(16, 32), draw(16, 32))),
    Case("adam_step", lambda p, g: _stepped(p, g), (draw(128, dtype=F32), draw(128)), False),
    Case("l2_norm", lambda x: torch.tensor(kernels.l2_norm([x, x])), (draw(16, 8),), False),
]  # fmt: skip


def _unpermuted(x: torch.Tensor, probs: torch.Tensor | None) -> torch.Tensor:
    rows = kernels.permute(x.detach()[:10], MAP.to(x.device))[1]
    return kernels.unpermute(x, rows, 10, probs)


def _accumulated(x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(16, 32, device=x.device)
    accumulate_weight_gradient(x, dy, total)
    return total


def _stepped(param: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    state = [torch.zeros_like(param) for _ in range(3)]
    kernels.adam_step([state[0]], [grad], [state[1]], [state[2]], step=1, lr=0.1)
    return state[0]


def results(case: Case, device: str) -> list[torch.Tensor | None]:
    """What the call returns, and the gradient of each input."""
    leaves = [x.clone().to(device).requires_grad_(case.differentiable) for x in case.inputs]
    found = case.call(*leaves)
    found = list(found) if isinstance(found, tuple) else [found]
    if not case.differentiable:
        return found
    outputs = [t for t in found if t.requires_grad]
    grads = torch.autograd.grad(outputs, leaves, [torch.ones_like(t) for t in outputs])
    return [t.detach() for t in found] + list(grads)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kernel)
def test_dispatch(case, caplog):
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING, logger="mindspeed_ms.kernels.dispatch"), implementation("ascend"):
        found = results(case, "npu")
    assert not caplog.records, "the composite ran"
    expected = results(case, "cpu")
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in expected]
    assert any(t.any() for t in expected), "the case shows nothing: csrc gives zeros, too"
    # Through the composite, or through csrc, they would be what csrc finds on the CPU.
    known = [t.cpu().ne(0) & e.ne(0) for t, e in zip(found, expected, strict=True)]
    lost = sum(int(e.count_nonzero() - k.count_nonzero()) for k, e in zip(known, expected, strict=True))
    assert lost, "MindSpore's inference, which knows no values, left no zeros"
    assert not case.whole or not any(k.any() for k in known), "not all of it is from MindSpore's inference"


def test_every_form_has_a_case_as_far_as_its_row_says():
    assert {case.kernel for case in CASES} | set(OF_A_GROUP) == set(dispatch.FORMS)
    differentiated = {case.kernel for case in CASES if case.differentiable} | set(OF_A_GROUP)
    differentiated -= {"ring_merge"}  # backward, the merged result is there
    claimed = {name for name, form in dispatch.FORMS.items() if form.backward_checked == dispatch.INFERENCE}
    assert differentiated == claimed


def test_the_table_of_the_documentation():
    assert ascend_table.FILE.read_text() == ascend_table.text(), (
        "run python -m tests.conformance.ascend_table --write"
    )
    assert set(ascend_table.without_form()) == {
        "auxiliary_scores", "clip_by_norm_", "multi_scale", "newton_schulz", "sgd_step"
    }  # fmt: skip


def test_the_adapters_of_the_dispatcher_permute_by_the_operators():
    """Megatron's moe_permute_fusion comes by Transformer Engine's names."""
    from mindspeed_ms.patches.transformer_engine import permutation

    _runtime.reset_coverage()
    tokens, probs = draw(10, 32).to("npu").requires_grad_(), draw(10, 5).to("npu").requires_grad_()
    with implementation("ascend"):
        rows, row_probs, back = permutation.moe_permute_with_probs(tokens, probs, MAP.to("npu"), 20)
        out = permutation.moe_unpermute(rows, back, restore_shape=tokens.shape)
        out.sum().backward()
    assert [t.shape for t in (rows, row_probs, out)] == [(20, 32), (20,), (10, 32)]
    assert (tokens.grad.shape, probs.grad) == (tokens.shape, None)
    calls = {op.removeprefix("mindspeed_ms::"): calls for op, _, _, calls, _ in _runtime.coverage_rows()}
    assert (calls["permute"], calls["unpermute"]) == (2, 2)
    assert "combine_rows" not in calls


def test_the_map_of_the_operator_leads_from_choices_to_rows():
    """As its page has it: permuted[places[i]] = tokens[i // choices], places = argsort(argsort(experts))."""
    tokens, probs = draw(10, 32, dtype=F32), torch.rand(10, 5)
    experts = MAP.nonzero()[:, 1]
    places = experts.argsort(stable=True).argsort()
    rows, back = kernels.permute(tokens, MAP)
    assert torch.equal(rows[places].view(10, 2, 32), tokens.unsqueeze(1).expand(-1, 2, -1))
    by_row = probs[back[1], back[0]]
    assert torch.equal(kernels.gather_rows(by_row, places).view(10, 2), probs[MAP].view(10, 2))


def test_calls_are_counted_as_mindspores():
    _runtime.reset_coverage()
    with implementation("ascend"):
        kernels.rms_norm(draw(4, 64).to("npu").requires_grad_()).sum().backward()
    found = [(op, route, calls) for op, _, route, calls, _ in _runtime.coverage_rows() if "rms_norm" in op]
    assert found == [("mindspeed_ms::rms_norm", "mindspore", 2)]


UNEVEN = MAP & (IDS[:5] > 0)


def _other_kernels(result: object) -> None:
    """For kernels made of others that have forms: their dry run gives zeros."""


REFUSED = [
    ("attention", lambda: kernels.attention(*(draw(8, 2, 2, 64).to("npu") for _ in range(3)), softcap=5.0)),
    ("attention", lambda: kernels.attention(*(draw(8, 2, 2, 64, dtype=F32).to("npu") for _ in range(3)))),
    ("rope", lambda: kernels.rope(draw(8, 2, 4, 64).to("npu"), ANGLES.expand(8, 2, 1, 64).to("npu"))),
    ("permute", lambda: _other_kernels(kernels.permute(draw(10, 32).to("npu"), UNEVEN.to("npu")))),
    ("unpermute",
     lambda: _other_kernels(_unpermuted(draw(20, 32).to("npu"), torch.ones(10, 5, device="npu")))),
    ("sgd_step", lambda: kernels.sgd_step(*([torch.ones(4, device="npu")] for _ in range(2)), lr=0.5)),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "call"), REFUSED, ids=[name for name, _ in REFUSED])
def test_the_composite_says_so_once(kernel, call, caplog):
    dispatch._log_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="mindspeed_ms.kernels.dispatch"), implementation("ascend"):
        call()
        result = call()
    assert [record.args[0] for record in caplog.records] == [kernel]
    assert result is None or result.any()


def test_route_host_keeps_the_composite():
    from mindspeed_ms.ops.routes import route

    x = draw(4, 64).to("npu")
    with implementation("ascend"), route("host"):
        assert kernels.implementation(x) == "composite"
        assert kernels.rms_norm(x).any()


def test_gradients_of_many_calls_in_any_order():
    """Every layer's forward pass comes before the first backward pass; recompute mixes them."""
    with implementation("ascend"):
        leaves = [draw(4, 64).to("npu").requires_grad_() for _ in range(3)]
        outs = [kernels.rms_norm(x) for x in leaves]
        for i in (1, 0, 2):
            (grad,) = torch.autograd.grad(outs[i].sum(), leaves[i])
            assert grad.shape == leaves[i].shape
        y = kernels.rms_norm(leaves[0]).sum()
        torch.autograd.grad(y, leaves[0], retain_graph=True)
        torch.autograd.grad(y, leaves[0])
        with pytest.raises(RuntimeError, match="retain_graph"):
            torch.autograd.grad(y, leaves[0])


def test_memory_of_the_arguments_is_not_changed():
    x = draw(4, 64).to("npu").requires_grad_()
    before = x.detach().clone()
    with implementation("ascend"):
        kernels.rms_norm(x).sum().backward()
    assert torch.equal(x.detach(), before)
    with implementation("csrc"):
        y = kernels.rms_norm(x)
    assert y.any() or _runtime.opaque_memory()
