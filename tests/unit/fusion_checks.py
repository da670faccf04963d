"""Program of test_patches_fusions.py: real Megatron-Core's fusions with and without our kernels, on npu.

Each check calls one function of Megatron three times: on route auto in float32 (and bfloat16), on route host,
and in float64, which no kernel takes: Megatron's own code then gives the truth. Coverage says who computed.
"""

import mindspeed_ms.patch  # noqa: F401, I001 - before Megatron

from collections.abc import Callable

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.fusions import (
    fused_bias_dropout,
    fused_bias_geglu,
    fused_bias_gelu,
    fused_bias_swiglu,
    fused_cross_entropy,
)
from megatron.core.fusions.fused_softmax import FusedScaleMaskSoftmax
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.optimizer import clip_grads
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.utils import attention_mask_func
from mindspeed_ms import routes
from mindspeed_ms.routes import coverage

ERROR = {torch.float32: 3e-6, torch.bfloat16: 2e-2}
DTYPES = (torch.float32, torch.bfloat16)
Tensor = torch.Tensor


def kernels_used() -> set[str]:
    """Names of our fused kernels that ran since the last reset, composites in torch operators left out."""
    rows = [row for row in coverage.snapshot() if row["route"] != "composite"]
    return {row["op"].partition("::")[2] for row in rows if row["op"].startswith("mindspeed_ms::")}


def run(function: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Result and gradients of the floating inputs, computed in `dtype`; coverage counts this run alone."""
    given = [
        x.detach().clone().to(dtype).requires_grad_(x.requires_grad) if x.is_floating_point() else x
        for x in inputs
    ]
    wanted = [x for x in given if x.requires_grad]
    coverage.reset()
    out = function(*given)
    weight = torch.cos(torch.arange(out.numel(), dtype=torch.float64)).reshape(out.shape).to(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), wanted)]


def error(found: Tensor, exact: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return ((found.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-6)).item()


def check(
    what: str, kernel: str, function: Callable[..., Tensor], inputs: list[Tensor], dtypes=DTYPES
) -> None:
    """The kernel ran on auto, agrees with float64, and stays away from route host and from float64."""
    for dtype in dtypes:
        rounded = [
            x.to(dtype).detach().requires_grad_(x.requires_grad) if x.is_floating_point() else x
            for x in inputs
        ]
        exact = run(function, rounded, torch.float64)
        assert not kernels_used(), f"{what}: a kernel took float64"
        ours = run(function, rounded, dtype)
        assert kernel in kernels_used(), f"{what}: {kernel} was not used"
        with routes.route("host"):
            host = run(function, rounded, dtype)
        assert not kernels_used(), f"{what}: a kernel ran on route host"
        for a, b, c in zip(ours, host, exact, strict=True):
            assert (a.shape, a.dtype) == (c.shape, b.dtype), f"{what}: {a.dtype} {tuple(a.shape)}"
            limit = max(ERROR[dtype], 1.5 * error(b, c)) if dtype == torch.bfloat16 else ERROR[dtype]
            assert error(a, c) <= limit, (
                f"{what} {dtype}: {error(a, c):.1e}, Megatron's own {error(b, c):.1e}"
            )
    print(what, "agrees", flush=True)


def randn(*shape: int, grad: bool = True) -> Tensor:
    """Normal numbers on the device."""
    return torch.randn(shape, device="cuda").requires_grad_(grad)


def activations() -> None:
    x, flat, bias = randn(6, 2, 96), randn(12, 96), randn(96)
    weights = torch.rand(12, 1, device="cuda").requires_grad_()
    swiglu, geglu = fused_bias_swiglu, fused_bias_geglu
    check("swiglu", "bias_glu", lambda x: swiglu.bias_swiglu_impl(x, None), [x])
    check("bias swiglu", "bias_glu", swiglu.bias_swiglu_impl, [x, bias])
    check(
        "weighted swiglu",
        "bias_glu",
        lambda x, w: swiglu.weighted_bias_swiglu_impl(x, None, w),
        [flat, weights],
    )
    check("geglu", "bias_glu", lambda x: geglu.bias_geglu_impl(x, None), [x])
    check("bias geglu", "bias_glu", geglu.bias_geglu_impl, [flat, bias])
    quick = geglu.weighted_bias_quick_geglu_impl
    check("quick geglu", "bias_glu", lambda x, w: quick(x, None, w, False, 1.0, 0.7), [flat, weights])
    check("bias gelu", "bias_activation", fused_bias_gelu.bias_gelu_impl, [x, bias])


def dropout() -> None:
    x, bias, residual = randn(8, 2, 64), randn(64), randn(8, 2, 64)
    train = fused_bias_dropout.get_bias_dropout_add(True, True)
    check(
        "bias dropout add, p 0",
        "bias_dropout_add",
        lambda x, b, r: train((x, b), r, 0.0),
        [x, bias, residual],
    )
    infer = fused_bias_dropout.get_bias_dropout_add(False, True)
    check(
        "bias add, inference", "bias_dropout_add", lambda x, b, r: infer((x, b), r, 0.1), [x, bias, residual]
    )
    written, b, r = (
        t.detach().clone() for t in (x, bias, residual)
    )  # without gradients Megatron writes into x
    expected = written.cpu() + b.cpu() + r.cpu()
    assert infer((written, b), r, 0.1).data_ptr() == written.data_ptr()
    torch.testing.assert_close(written.cpu(), expected)

    def seeded(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        torch.cuda.manual_seed(7)
        return train((x, bias), residual, 0.3)

    # The same seed draws the same mask with and without the kernel: an error of rounding only.
    check("bias dropout add, p 0.3", "bias_dropout_add", seeded, [x, bias, residual], (torch.float32,))


def softmax() -> None:
    scores = randn(2, 3, 16, 16)
    mask = torch.rand(2, 1, 16, 16, device="cuda") < 0.4
    mask[0, 0, 3] = True  # a row with nothing left in
    kinds = {"causal": (AttnMaskType.causal, None), "masked": (AttnMaskType.padding, mask)}
    for name, (kind, given) in kinds.items():
        for scale in (None, 0.3):

            def call(x: Tensor, kind=kind, given=given, scale=scale) -> Tensor:
                bf16 = x.dtype == torch.bfloat16
                return FusedScaleMaskSoftmax(False, bf16, kind, True, attention_mask_func, True, scale)(
                    x * 1.0, given
                )

            check(f"{name} softmax, scale {scale}", "scaled_softmax", call, [scores])


def cross_entropy() -> None:
    logits, target = randn(10, 2, 50), torch.randint(0, 50, (10, 2), device="cuda")
    group = parallel_state.get_tensor_model_parallel_group()
    # Megatron writes into the logits it is given: each call gets a copy.
    for smoothing in (0.0, 0.1):

        def plain(x: Tensor, target: Tensor, smoothing: float = smoothing) -> Tensor:
            return tensor_parallel.vocab_parallel_cross_entropy(x * 1.0, target, smoothing)

        check_loss(f"cross entropy, smoothing {smoothing}", plain, logits, target)
    fused = fused_cross_entropy.fused_vocab_parallel_cross_entropy
    check_loss("fused cross entropy", lambda x, t: fused(x * 1.0, t, group), logits, target, gradient=False)


def own_logits() -> None:
    """A model's 16-bit logits become their gradient, which is what it is where they are kept."""
    config = TransformerConfig(
        num_layers=1, hidden_size=16, num_attention_heads=1, bf16=True, use_cpu_initialization=True
    )
    module = LanguageModule(config)
    layer = tensor_parallel.ColumnParallelLinear(
        16, 50, config=config, init_method=torch.nn.init.normal_, bias=False
    )
    layer = layer.bfloat16().cuda()
    hidden = randn(10, 2, 16).bfloat16()
    labels = torch.randint(0, 50, (2, 10), device="cuda")
    grads, kept = [], []
    for scale in (1.0, torch.ones((), device="cuda", dtype=torch.bfloat16)):
        x = hidden.detach().requires_grad_()
        logits = layer(x)[0]
        logits = logits if isinstance(scale, float) else logits * scale
        before = logits.detach().clone()
        module.compute_language_model_loss(labels, logits).sum().backward()
        grads.append(x.grad)
        kept.append(torch.equal(logits.detach(), before))
    assert kept == [False, True], "only what the output layer made is overwritten"
    assert torch.equal(*grads)
    print("own logits agree", flush=True)


def check_loss(
    what: str, function: Callable[..., Tensor], logits: Tensor, target: Tensor, gradient=True
) -> None:
    """As `check`, against route host: Megatron computes losses in float32 whatever it is given."""
    for dtype in DTYPES:
        x = logits.detach().to(dtype).requires_grad_()
        ours = run(function, [x, target], dtype)
        assert any("cross_entropy_backward" in name for name in kernels_used()), what
        with routes.route("host"):
            host = run(function, [x, target], dtype)
        assert not kernels_used(), f"{what}: a kernel ran on route host"
        # `fused` gives gradients in bfloat16 for any logits: ours are closer to the truth than it.
        limits = [ERROR[torch.float32], ERROR[dtype] if gradient else 1e-2]
        for a, b, limit in zip(ours, host, limits, strict=True):
            assert a.dtype == b.dtype, what
            assert error(a, b.double()) <= limit, f"{what} {dtype}: {error(a, b.double()):.1e}"
    print(what, "agrees", flush=True)


def rotary() -> None:
    t = randn(12, 2, 4, 32)
    for name, options, channels in (
        ("half", {}, 32),
        ("partial", {}, 16),
        ("interleaved", {"rotary_interleaved": True}, 32),
        ("multi-latent", {"multi_latent_attention": True, "mscale": 1.2}, 32),
    ):
        angles = torch.outer(torch.arange(12.0), 10000 ** -(torch.arange(0, channels, 2) / channels))
        both = angles.repeat_interleave(2, -1) if name == "interleaved" else torch.cat((angles, angles), -1)
        freqs = both.view(12, 1, 1, channels).cuda()

        def call(t: Tensor, options=options, freqs=freqs) -> Tensor:
            return rope_utils._apply_rotary_pos_emb_bshd(t, freqs, **options)

        check(f"rope {name}", "rope", call, [t])


def norms() -> None:
    for kind, kernel in (("LayerNorm", "layer_norm"), ("RMSNorm", "rms_norm")):
        config = TransformerConfig(num_layers=1, hidden_size=64, num_attention_heads=4, normalization=kind)
        norm = WrappedTorchNorm(config, 64).cuda()
        assert list(norm.state_dict()) == (["weight", "bias"] if kind == "LayerNorm" else ["weight"])
        assert isinstance(norm, getattr(torch.nn, kind))

        def call(x: Tensor, *parameters: Tensor, norm=norm) -> Tensor:
            named = dict(zip(norm.state_dict(), parameters, strict=True))
            return torch.func.functional_call(norm, named, (x,))

        check(kind, kernel, call, [randn(6, 2, 64), *(randn(64) for _ in norm.state_dict())])


def router() -> None:
    logits = torch.stack([torch.randperm(16) for _ in range(20)]).cuda() * 0.3 - 2.0  # no two alike in a row
    logits.requires_grad_()
    for name, options in (
        ("softmax", {}),
        ("pre-softmax", {"use_pre_softmax": True, "scaling_factor": 2.0}),
        ("sigmoid by groups", {"score_function": "sigmoid", "num_groups": 4, "group_topk": 2}),
    ):

        def call(x: Tensor, options=options) -> Tensor:
            return moe_utils.topk_routing_with_score_function(x, 4, fused=True, **options)[0]

        # Megatron's own rounds the scores, we the result.
        check(f"router {name}", "topk_router", call, [logits], (torch.float32,))
    mask = torch.zeros(20, dtype=torch.bool, device="cuda")
    mask[3:5] = True

    def balance(x: Tensor) -> Tensor:
        chosen, scores = moe_utils.compute_routing_scores_for_aux_loss(
            x, 2, "softmax", fused=True, padding_mask=mask
        )
        assert not chosen[3:5].any()
        return moe_utils.switch_load_balancing_loss_func(scores, chosen.sum(0), 20, 2, 16, 0.1, fused=True)

    check("auxiliary loss", "auxiliary_scores", balance, [logits], (torch.float32,))


def experts() -> None:
    """A layer of experts with all its fusions, on both dispatchers, grouped and not."""
    for dispatcher in ("allgather", "alltoall"):
        # Megatron's own grouped experts refuse float32.
        for spec, dtype in (
            (get_gpt_layer_with_transformer_engine_spec, torch.float32),
            (get_gpt_layer_local_spec, torch.bfloat16),
        ):
            config = TransformerConfig(
                num_layers=1,
                hidden_size=32,
                num_attention_heads=4,
                num_moe_experts=4,
                moe_router_topk=2,
                moe_router_load_balancing_type="aux_loss",
                moe_aux_loss_coeff=0.1,
                moe_token_dispatcher_type=dispatcher,
                moe_permute_fusion=True,
                moe_router_fusion=True,
                moe_grouped_gemm=True,
                add_bias_linear=False,
                gated_linear_unit=True,
                activation_func=torch.nn.functional.silu,
                bias_activation_fusion=True,
                moe_router_dtype="fp32",
                bf16=dtype == torch.bfloat16,
                params_dtype=dtype,
            )
            modules = spec(num_experts=4, moe_grouped_gemm=True).submodules.mlp
            # a ModuleSpec, which makes its module when called; from 0.19 on a function that does
            layer = modules(config=config, layer_number=1).cuda()
            layer.set_layer_number(1)
            x = randn(10, 2, 32).to(dtype)
            results = []
            for route in ("auto", "host"):
                with routes.route(route):
                    out, _ = layer(x)
                    coverage.reset()
                    named = [x, *layer.parameters()]
                    grads = torch.autograd.grad(out.square().sum(), named)
                    used = kernels_used()
                # from 0.19 on the local spec has no grouped experts
                grouped = not isinstance(layer.experts, SequentialMLP)
                expected = {"combine_rows", *(["grouped_matmul_backward"] if grouped else [])}
                assert expected & used == (expected if route == "auto" else set()), used
                results.append([out, *grads])
            for a, b in zip(*results, strict=True):
                assert a.dtype == b.dtype
                assert error(a, b.double()) < (1e-5 if dtype == torch.float32 else 3e-2), (dispatcher, dtype)
    print("layer of experts agrees", flush=True)


def gradients() -> None:
    params = [torch.nn.Parameter(randn(9, 7)), torch.nn.Parameter(randn(40))]
    for p in params:
        p.grad = torch.randn_like(p)
    exact = torch.cat([p.grad.double().flatten() for p in params])
    before = [p.grad.clone() for p in params]
    coverage.reset()
    group = parallel_state.get_model_parallel_group()
    norm = clip_grads.get_grad_norm_fp32([p.grad for p in params], grad_stats_parallel_group=group)
    assert abs(norm - exact.norm().item()) < 1e-6 * norm
    clip_grads.clip_grad_by_total_norm_fp32(params, 0.5, norm)
    assert kernels_used() == {"l2_norm", "multi_scale_"}
    for p, old in zip(params, before, strict=True):
        torch.testing.assert_close(p.grad, old * (0.5 / (norm + 1e-6)), rtol=1e-6, atol=0)
    print("norm and clip of gradients agree", flush=True)


def main() -> None:
    """Runs every check."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(3)
    torch.manual_seed(0)
    every = (activations, dropout, softmax, cross_entropy, own_logits, rotary, norms, router, experts)
    for checks in (*every, gradients):
        checks()
    dist.destroy_process_group()
    print("all fusions agree", flush=True)


if __name__ == "__main__":
    main()
