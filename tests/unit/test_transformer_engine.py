"""The stand-in for Transformer Engine: parameter names, numbers against float64, refusals."""

import subprocess
import sys
import textwrap

import pytest

SET_UP = """
import os
os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
import mindspeed_ms.patch
import torch
from torch.nn import functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.transformer.transformer_config import TransformerConfig
store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
parallel_state.initialize_model_parallel()
tensor_parallel.model_parallel_cuda_manual_seed(1234)
common = dict(num_layers=1, hidden_size=64, num_attention_heads=4, gradient_accumulation_fusion=False)
"""


def in_process(body: str) -> subprocess.CompletedProcess[str]:
    code = SET_UP + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def succeeds(body: str) -> str:
    done = in_process(body)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_default_layer_has_the_parameter_names_of_transformer_engine():
    out = succeeds("""
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
        from megatron.core.transformer.spec_utils import build_module
        layer = build_module(get_gpt_layer_with_transformer_engine_spec(), config=TransformerConfig(**common))
        print(*sorted(layer.state_dict()))
    """)
    assert set(out.split()) >= {  # as in checkpoints that Megatron writes with the real package
        *("self_attention.linear_qkv.layer_norm_weight", "self_attention.linear_qkv.layer_norm_bias"),
        *("self_attention.linear_qkv.weight", "self_attention.linear_qkv.bias"),
        *("self_attention.linear_proj.weight", "self_attention.linear_proj.bias"),
        *("mlp.linear_fc1.layer_norm_weight", "mlp.linear_fc1.layer_norm_bias"),
        *("mlp.linear_fc1.weight", "mlp.linear_fc1.bias", "mlp.linear_fc2.weight", "mlp.linear_fc2.bias"),
        *("self_attention.linear_qkv._extra_state", "mlp.linear_fc2._extra_state"),
    }
    assert "input_layernorm" not in out
    assert "core_attention." not in out.replace("core_attention._extra_state", "")


def test_the_package_tells_its_version():
    succeeds("""
        import importlib.metadata
        import transformer_engine
        assert importlib.metadata.version("transformer-engine") == transformer_engine.__version__
    """)


@pytest.mark.parametrize(
    "make",
    [
        "te.LayerNormLinear(64, 32, normalization='LayerNorm', parallel_mode='column', device={device})",
        "te.GroupedLinear(3, 64, 32, device={device})",
        "te.LayerNorm(64, zero_centered_gamma=True, device={device})",
    ],
)
def test_reset_after_device_meta_gives_what_the_constructor_gives(make):
    succeeds(f"""
        import transformer_engine.pytorch as te
        torch.manual_seed(5)
        direct = {make.format(device="'cuda'")}
        module = {make.format(device="'meta'")}
        assert all(p.is_meta for p in module.parameters())
        module.to_empty(device="cuda", recurse=False)
        torch.manual_seed(5)
        module.reset_parameters()
        assert len(list(module.parameters())) == len(list(direct.parameters()))
        for one, other in zip(module.parameters(), direct.parameters()):
            assert torch.equal(one, other)
            marks = ("partition_dim", "sequence_parallel")
            assert [getattr(one, m, None) for m in marks] == [getattr(other, m, None) for m in marks]
    """)


@pytest.mark.parametrize("normalization", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("zero_centered", [False, True])
def test_norm_linear_against_float64(normalization, zero_centered):
    succeeds(f"""
        import transformer_engine.pytorch as te
        layer = te.LayerNormLinear(
            64, 48, normalization="{normalization}", zero_centered_gamma={zero_centered},
            params_dtype=torch.float32,
        )
        torch.nn.init.normal_(layer.layer_norm_weight)
        x = torch.randn(6, 2, 64, device="cuda", requires_grad=True)
        out = layer(x)
        weighting = torch.randn(out.shape).cuda()
        (out * weighting).sum().backward()
        exact = x.detach().cpu().double().requires_grad_()
        named = {{k: v.detach().cpu().double().requires_grad_() for k, v in layer.named_parameters()}}
        gamma = named["layer_norm_weight"] + {int(zero_centered)}
        if "{normalization}" == "LayerNorm":
            normed = F.layer_norm(exact, (64,), gamma, named["layer_norm_bias"], 1e-5)
        else:
            normed = F.rms_norm(exact, (64,), gamma, 1e-5)
        expected = F.linear(normed, named["weight"], named["bias"])
        (expected * weighting.cpu().double()).sum().backward()
        torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x.grad.cpu().double(), exact.grad, rtol=2e-5, atol=2e-5)
        for name, value in layer.named_parameters():
            torch.testing.assert_close(value.grad.cpu().double(), named[name].grad, rtol=2e-5, atol=2e-5)
    """)


def test_grouped_linear_against_float64_with_an_expert_without_rows():
    succeeds("""
        import transformer_engine.pytorch as te
        layer = te.GroupedLinear(3, 16, 8, bias=False, params_dtype=torch.float32)
        assert [name for name, _ in layer.named_parameters()] == ["weight0", "weight1", "weight2"]
        x = torch.randn(7, 16, device="cuda")
        out = layer(x, [4, 0, 3])
        out.sum().backward()
        rows = x.cpu().double().split([4, 0, 3])
        weights = [p.detach().cpu().double() for p in layer.parameters()]
        expected = torch.cat([r @ w.t() for r, w in zip(rows, weights)])
        torch.testing.assert_close(out.detach().cpu().double(), expected, rtol=1e-5, atol=1e-6)
        for r, p in zip(rows, layer.parameters()):
            grad = r.sum(0).expand(8, 16)
            torch.testing.assert_close(p.grad.cpu().double(), grad, rtol=1e-5, atol=1e-6)
    """)


def test_grouped_linear_adds_its_gradients_to_the_sums_that_ddp_keeps():
    succeeds("""
        import transformer_engine.pytorch as te
        options = dict(params_dtype=torch.bfloat16, fuse_wgrad_accumulation=True)
        layer = te.GroupedLinear(3, 16, 8, bias=False, **options)
        weights = list(layer.parameters())
        for p in weights:
            p.main_grad, p.grad_added_to_main_grad = torch.ones(8, 16, device="cuda"), False
        x = torch.randn(7, 16, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weighting = torch.randn(7, 8, device="cuda", dtype=torch.bfloat16)
        splits = [4, 0, 3]
        for _ in range(2):
            layer(x, splits).backward(weighting)
        assert all(p.grad_added_to_main_grad for p in weights)
        rows, grads = (t.detach().cpu().double().split(splits) for t in (x, weighting))
        exact = [p.detach().cpu().double() for p in weights]
        torch.testing.assert_close(
            x.grad.cpu().double(), 2 * torch.cat([g @ w for g, w in zip(grads, exact)]), rtol=2e-2, atol=2e-2
        )
        for r, g, p in zip(rows, grads, weights):
            torch.testing.assert_close(p.main_grad.cpu().double(), 1 + 2 * g.t() @ r, rtol=1e-5, atol=1e-5)
    """)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "layer", ["te.Linear(16, 8, bias=False, {})", "te.GroupedLinear(3, 16, 8, bias=False, {})"]
)
def test_a_frozen_layer_hands_the_gradient_on(layer, fused):
    succeeds(f"""
        import transformer_engine.pytorch as te
        layer = {layer.format(f"params_dtype=torch.float32, fuse_wgrad_accumulation={fused}")}
        layer.requires_grad_(False)
        x = torch.randn(7, 16, device="cuda", requires_grad=True)
        splits = [[4, 0, 3]] if "Grouped" in type(layer).__name__ else []
        layer(x, *splits).sum().backward()
        weights = [p.cpu().double() for p in layer.parameters()]
        rows = [w.sum(0) for w, count in zip(weights, (splits or [[7]])[0]) for _ in range(count)]
        torch.testing.assert_close(x.grad.cpu().double(), torch.stack(rows), rtol=1e-5, atol=1e-5)
    """)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        ("te.fp8_autocast(enabled=True)", "--bf16"),
        ("te.distributed.CudaRNGStatesTracker()", "--te-rng-tracker"),
        ("te.ops.Linear()", "--use-transformer-engine-op-fuser"),
        ("te.ops.GELU(cache_quantized_input=True)", "activation_func_fp8_input_store"),
        ("te.Linear(8, 8, ub_overlap_ag=True)", "--tp-comm-overlap"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_flag_to_change(call, word):
    done = in_process(f"import transformer_engine.pytorch as te\n{call}")
    assert done.returncode == 1
    assert word in done.stderr.splitlines()[-1]


def test_fp8_state_of_a_checkpoint_is_dropped_with_a_word():
    done = in_process("""
        import transformer_engine.pytorch as te
        layer = te.Linear(8, 8, params_dtype=torch.float32)
        layer.set_extra_state(torch.ones(3, dtype=torch.uint8))
    """)
    assert done.returncode == 0, done.stderr
    assert "fp8 scaling factors" in done.stderr


def test_extra_states_of_each_release_are_read_for_what_they_are():
    succeeds("""
        import datetime, io, pickle
        from transformer_engine.pytorch._extra_state import holds_scaling_factors

        def file(value):
            torch.save(value, made := io.BytesIO())
            return made

        def tensor(value):
            return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)

        recipe = datetime.date(2024, 1, 1)  # an object of a class, as a recipe is
        scales = {"scale_fwd": torch.ones(3), "extra_fp8_variables": {"num_gemms": 1}}
        for empty in (None, file(None), tensor(None), tensor({}), torch.empty(0, dtype=torch.uint8)):
            assert not holds_scaling_factors(empty)
        for full in (file(scales), tensor(scales), tensor({"recipe": recipe}), file({"recipe": recipe})):
            assert holds_scaling_factors(full)
    """)


def test_modules_save_the_extra_states_of_2_2_and_load_without():
    succeeds("""
        import pickle
        import transformer_engine.pytorch as te
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
        from megatron.core.transformer.spec_utils import build_module
        layer = build_module(get_gpt_layer_with_transformer_engine_spec(), config=TransformerConfig(**common))
        norm = te.RMSNorm(8)
        saved = {**layer.state_dict(), **{f"norm.{k}": v for k, v in norm.state_dict().items()}}
        extra = {key: pickle.loads(v.numpy().tobytes()) for key, v in saved.items() if "_extra_state" in key}
        modules = ("self_attention.linear_proj", "self_attention.linear_qkv", "self_attention.core_attention")
        expected = dict.fromkeys((*modules, "mlp.linear_fc1", "mlp.linear_fc2"))
        assert extra == {f"{key}._extra_state": v for key, v in {**expected, "norm": {}}.items()}
        layer.load_state_dict({k: v for k, v in layer.state_dict().items() if "_extra_state" not in k})
    """)


def test_rope_fusion_is_what_megatron_does_without_it():
    succeeds("""
        from megatron.core.models.common.embeddings import rope_utils
        t = torch.randn(6, 2, 4, 16, device="cuda", requires_grad=True)
        freqs = torch.randn(6, 1, 1, 12, device="cuda").cuda()
        fused = rope_utils.fused_apply_rotary_pos_emb(t, freqs)
        plain = rope_utils._apply_rotary_pos_emb_bshd(t, freqs)
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    """)


def test_packed_sequences_are_what_each_is_alone():
    """Attention layer with rope, fused and not, over packed sequences with padding: rows of single runs."""
    succeeds("""
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
        from megatron.core.packed_seq_params import PackedSeqParams
        from megatron.core.transformer.attention import SelfAttention
        from megatron.core.transformer.enums import AttnMaskType
        lengths, places = [3, 8, 5], [0, 4, 14, 20]
        spec = get_gpt_layer_with_transformer_engine_spec().submodules.self_attention.submodules
        for fused in (False, True):
            config = TransformerConfig(
                **common, num_query_groups=2, apply_rope_fusion=fused, attention_dropout=0.0
            )
            layer = SelfAttention(config, spec, 1, AttnMaskType.causal).cuda()
            x = torch.randn(20, 1, 64, device="cuda")
            freqs = torch.randn(10, 1, 1, 16).cuda()
            ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).cuda()
            padded = torch.tensor(places, dtype=torch.int32).cuda()
            packed = PackedSeqParams(
                qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends, cu_seqlens_q_padded=padded,
                cu_seqlens_kv_padded=padded, max_seqlen_q=10, max_seqlen_kv=10,
            )
            together, _ = layer(x, None, rotary_pos_emb=freqs, packed_seq_params=packed)
            together.square().sum().backward()
            gradient = layer.linear_qkv.weight.grad.clone()
            layer.linear_qkv.weight.grad = None
            for begin, length in zip(places, lengths):
                rows = slice(begin, begin + length)
                alone, _ = layer(x[rows], None, rotary_pos_emb=freqs[:length])
                torch.testing.assert_close(together[rows], alone, rtol=1e-5, atol=1e-6)
                alone.square().sum().backward()
            torch.testing.assert_close(gradient, layer.linear_qkv.weight.grad, rtol=1e-4, atol=1e-5)
    """)


def test_attention_shows_its_window_and_takes_a_group():
    # check_set_window_size of transformer_engine/pytorch/attention/dot_product_attention/utils.py, 2.2
    succeeds("""
        import transformer_engine.pytorch as te
        from megatron.core.transformer import TransformerConfig

        class Attention(te.DotProductAttention):
            def __init__(self, **options):
                self.config = TransformerConfig(num_layers=1, hidden_size=64, num_attention_heads=4)
                super().__init__(4, 16, **options)

        layer = {"layer_number": 1}
        for kind, given, shown in (
            ("causal", None, (-1, 0)), ("causal", (10, 0), (10, 0)), ("causal", (10, 10), (10, 0)),
            ("no_mask", None, (-1, -1)), ("no_mask", (-1, 0), (-1, -1)), ("no_mask", (3, 2), (3, 2)),
        ):
            assert Attention(attn_mask_type=kind, window_size=given, **layer).window_size == shown, kind
        parallel_state.destroy_model_parallel()  # a caller's own groups are enough
        alone = Attention(tp_group=torch.distributed.group.WORLD, **layer)
        x = torch.randn(5, 1, 4, 16, device="cuda")
        exact = torch.nn.functional.scaled_dot_product_attention(
            *[x.cpu().double().permute(1, 2, 0, 3)] * 3, is_causal=True
        )
        found = alone(x, x, x).cpu().double().view(5, 1, 4, 16).permute(1, 2, 0, 3)
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    """)


def test_activations_by_themselves():
    succeeds("""
        import transformer_engine.pytorch as te
        from torch.nn import functional as F
        def glu(act):
            return lambda x: act(x[..., :8]) * x[..., 8:]
        gelu = lambda x: F.gelu(x, approximate="tanh")
        for name, exact in (("SwiGLU", glu(F.silu)), ("GEGLU", glu(gelu)), ("GELU", gelu), ("ReLU", F.relu)):
            x = torch.randn(3, 2, 16)
            ours, theirs = x.cuda().requires_grad_(), x.double().requires_grad_()
            found, expected = getattr(te.ops, name)()(ours), exact(theirs)
            torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-5)
            found.square().sum().backward()
            expected.square().sum().backward()
            torch.testing.assert_close(ours.grad.cpu().double(), theirs.grad, rtol=1e-4, atol=1e-5)
    """)


def test_it_says_that_there_is_no_fp8_hardware():
    out = succeeds("""
        from transformer_engine.pytorch import fp8
        for kind in ("fp8", "mxfp8", "nvfp4", "fp8_block_scaling"):
            print(getattr(fp8, f"check_{kind}_support")()[0])
    """)
    assert out.split() == ["False"] * 4


def test_padding_masks_of_transformer_engine():
    succeeds("""
        from megatron.core.extensions.transformer_engine import TEDotProductAttention
        from megatron.core.transformer.enums import AttnMaskType
        config = TransformerConfig(**common)
        q, k, v = (torch.randn(n, 2, 4, 16, device="cuda") for n in (3, 5, 5))
        hidden = torch.zeros(2, 1, 1, 5, dtype=torch.bool)
        hidden[1, ..., 3:] = True
        ends = torch.zeros(2, 1, 1, 3, dtype=torch.bool).cuda()

        def attend(kind, q, mask):
            core = TEDotProductAttention(config, 1, AttnMaskType[kind], "self", attention_dropout=0.0)
            return core(q, k, v, mask, AttnMaskType[kind]).cpu().unflatten(-1, (4, 16)).permute(1, 2, 0, 3)

        def exact(q, keep):
            shaped = [x.cpu().double().permute(1, 2, 0, 3) for x in (q, k, v)]
            return F.scaled_dot_product_attention(*shaped, attn_mask=keep)

        got = attend("padding", q, (ends, hidden.cuda())).double()
        torch.testing.assert_close(got, exact(q, ~hidden), rtol=1e-5, atol=1e-5)
        past = torch.ones(5, 5, dtype=torch.bool).tril()
        got = attend("padding_causal", k, hidden.cuda()).double()
        torch.testing.assert_close(got, exact(k, ~hidden & past), rtol=1e-5, atol=1e-5)
    """)
