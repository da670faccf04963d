"""The declared patches: they fit every supported Megatron-Core, and do what they say."""

import importlib.util
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import mindspeed_ms.patch  # noqa: F401
import pytest
import torch
from mindspeed_ms.config.versions import tree_version
from mindspeed_ms.patches import registry, stand_ins
from mindspeed_ms.patches.registry import Patch
from mindspeed_ms.patches.verify import verify
from packaging.version import Version

WHEELS = ("0.12.3", "0.13.1", "0.14.0", "0.15.3", "0.16.1", "0.17.1", "0.18.2", "0.19.2")
INSTALLED = Path(str(distribution("megatron-core").locate_file("")))


def declared() -> list[Patch]:
    return [record.patch for record in registry.load().records()]


@pytest.fixture(scope="session")
def wheel(request):
    """Function: Megatron-Core version to the folder where its wheel from PyPI is unpacked (kept between
    runs).
    """

    def unpacked(version: str) -> Path:
        if tree_version(INSTALLED) == version:
            return INSTALLED
        cache = request.config.cache.mkdir(f"megatron-core-{version}")
        if (cache / "megatron/core/package_info.py").is_file():
            return cache
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        command += ["-d", str(cache), f"megatron-core=={version}"]
        # PyPI has no others, and they are only read.
        command += ["--python-version", "3.12" if Version(version) >= Version("0.17") else "3.11"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            # Without a network there is no wheel to be had. Everything else is an error: what is not looked
            # at has not drifted.
            answer = pytest.skip if "connection broken by" in done.stderr else pytest.fail
            answer(f"cannot download megatron-core {version}: {done.stderr.strip()[-500:]}")
        (archive,) = cache.glob("*.whl")
        with zipfile.ZipFile(archive) as file:
            file.extractall(
                cache, [n for n in file.namelist() if n.startswith("megatron/") and n.endswith(".py")]
            )
        archive.unlink()
        return cache

    return unpacked


@pytest.mark.parametrize("version", WHEELS)
def test_targets_exist_in_each_release(wheel, version):
    tree = wheel(version)
    assert tree_version(tree) == version
    assert [str(finding) for finding in verify(tree, declared())] == []


CHECKOUT_TAGS = tuple(f"core_v{version}" for version in WHEELS)


@pytest.mark.parametrize("tag", CHECKOUT_TAGS)
def test_targets_exist_in_each_tag_of_a_checkout(megatron_lm_path, tmp_path, tag):
    """Before 0.17 the wheels hold megatron.core only; megatron.legacy is in the repository alone."""
    git = ["git", "-C", str(megatron_lm_path)]
    if subprocess.run([*git, "rev-parse", "-q", "--verify", tag], capture_output=True).returncode:
        pytest.skip(f"{megatron_lm_path} does not have the tag {tag}")
    archive = subprocess.run([*git, "archive", tag, "megatron"], capture_output=True, check=True, timeout=60)
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=archive.stdout, check=True, timeout=60)
    assert tree_version(tmp_path) == tag.removeprefix("core_v")
    assert [str(finding) for finding in verify(tmp_path, declared())] == []


def test_drifted_targets_are_found():
    """What drift looks like: a module, a name, a method, a signature that is not there."""

    def one(a):
        return a

    def same(numerator, denominator):
        return numerator

    findings = verify(
        INSTALLED,
        [
            Patch("megatron.core.no_such_module:f", one, "test"),
            Patch("megatron.core.utils:no_such_function", one, "test"),
            Patch("megatron.core.timers:Timer.no_such_method", one, "test"),
            Patch("megatron.core.utils:divide", one, "test"),
            Patch("megatron.core.utils:divide", one, "other version", "<0.12"),
            Patch("megatron.core.utils:divide", same, "fits"),
        ],
    )
    assert [finding.problem for finding in findings] == [
        "there is no module megatron.core.no_such_module",
        "'no_such_function' is not defined there",
        "'no_such_method' is not defined there",
        "parameter 1 is 'a', the original has 'numerator'",
    ]


def test_every_reason_is_told():
    assert all(len(patch.reason.split()) > 3 for patch in declared())
    assert all(len(line.partition(": ")[2].split()) > 3 for line in stand_ins.table().splitlines())


class TestNorm:
    def make(self, **changes):
        from megatron.core.transformer.torch_norm import WrappedTorchNorm
        from megatron.core.transformer.transformer_config import TransformerConfig

        config = TransformerConfig(
            num_layers=1, hidden_size=8, num_attention_heads=1, persist_layer_norm=True
        )
        for name, value in changes.items():
            setattr(config, name, value)
        return WrappedTorchNorm(config=config, hidden_size=8, eps=1e-5), config

    def test_default_of_the_training_scripts_is_accepted(self):
        norm, config = self.make()
        x = torch.randn(3, 8)
        ref = x.double()
        ref = (ref - ref.mean(-1, keepdim=True)) / (ref.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(norm(x).double(), ref, rtol=0, atol=2e-6)
        assert config.persist_layer_norm, "the caller's config stays as it was"

    def test_sequence_parallel_marks_parameters(self):
        norm, _ = self.make(sequence_parallel=True)
        assert all(p.sequence_parallel for p in norm.parameters())
        norm, _ = self.make()
        assert not any(p.sequence_parallel for p in norm.parameters())

    def test_what_torch_cannot_do_is_still_refused(self):
        with pytest.raises(AssertionError, match="zero_centered_gamma"):
            self.make(layernorm_zero_centered_gamma=True)


@pytest.mark.parametrize("with_bias", [False, True])
def test_router_gating_against_float64(with_bias):
    from megatron.core.transformer.moe.moe_utils import router_gating_linear

    torch.manual_seed(1)
    x, weight, bias = (
        torch.randn(*shape, dtype=torch.bfloat16, requires_grad=True) for shape in ((5, 2, 16), (4, 16), (4,))
    )
    logits = router_gating_linear(x, weight, bias if with_bias else None, torch.float32)
    assert logits.dtype is torch.float32
    probe = torch.randn_like(logits)
    logits.backward(probe)
    x64, w64 = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = x64 @ w64.T + (bias.detach().double() if with_bias else 0)
    expected.backward(probe.double())
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5)
    # gradients come back in bf16: one rounding, 2**-8 relative
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), w64.grad, rtol=2**-8, atol=1e-5)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


ARM = "import mindspeed_ms.patch\n"


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is not None,
    reason="triton is installed, as torch's CUDA build asks for: nothing is lent",
)
def test_triton_is_lent_to_one_module_only():
    out = run(
        ARM
        + """
import importlib.util, inspect, sys
from megatron.core.transformer.custom_layers import batch_invariant_kernels as kernels
assert importlib.util.find_spec("triton") is None and "triton" not in sys.modules
assert "def mean_dim" in inspect.getsource(kernels)
print(kernels.is_batch_invariant_mode_enabled())
import torch
try:
    kernels.matmul_persistent(torch.ones(2, 2), torch.ones(2, 2))
except Exception as error:
    print(type(error).__name__, error)
"""
    )
    said = out.splitlines()
    assert said[0] == "False"
    assert "needs triton" in out or "CUDA" in out, out


def test_jit_fuser_is_eager():
    out = run(
        ARM
        + """
from megatron.core import jit
from megatron.core.fusions import fused_bias_gelu
print(hasattr(fused_bias_gelu.bias_gelu, "_torchdynamo_orig_callable"))
jit.enable_jit_fuser()
f = lambda x: x
print(jit.jit_fuser(f) is f, jit.jit_fuser(dynamic=True)(f) is f)
"""
    )
    assert out.split() == ["False", "True", "True"]


def test_functions_compiled_before_the_patch_run_eagerly():
    out = run(
        """
from megatron.core.fusions import fused_bias_gelu
assert hasattr(fused_bias_gelu.bias_gelu, "_torchdynamo_orig_callable")
"""
        + ARM
        + """
import torch, torch._dynamo.utils as dynamo
print(fused_bias_gelu.bias_gelu(torch.zeros(4), torch.ones(4))[0].item())
print(len(dynamo.counters["stats"]))
"""
    )
    value, compiled = out.split()
    assert float(value) == pytest.approx(0.8411920, abs=1e-6)  # gelu(1), tanh form
    assert compiled == "0"


@pytest.mark.parametrize("buffer", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_gradient_extension_accumulates(dtype, buffer):
    import fused_weight_gradient_mlp_cuda as extension

    torch.manual_seed(1)
    x, grad = torch.randn(6, 3, 8).to(dtype), torch.randn(6, 3, 5).to(dtype)
    main_grad = torch.randn(5, 8).to(buffer)
    expected = main_grad.double() + grad.double().reshape(18, 5).T @ x.double().reshape(18, 8)
    extension.wgrad_gemm_accum_fp32(x, grad, main_grad)
    # 18 products of order one in float32; a bfloat16 buffer rounds its sum to 2**-8, once or twice
    rtol, atol = (0, 1e-5) if buffer is torch.float32 else (2**-7, 2**-7)
    torch.testing.assert_close(main_grad.double(), expected, rtol=rtol, atol=atol)


def test_column_parallel_linear_accepts_gradient_accumulation_fusion():
    out = run(
        ARM
        + """
from megatron.core.tensor_parallel import layers
print(layers._grad_accum_fusion_available)
from mindspeed_ms.config.versions import tree_version
from mindspeed_ms.patches import registry
registry.disarm()
import importlib.util
print(importlib.util.find_spec("fused_weight_gradient_mlp_cuda"))
"""
    )
    assert out.split() == ["True", "None"]


def test_output_recomputed_without_fp8():
    from megatron.core.tensor_parallel.random import CheckpointWithoutOutput

    x = torch.rand(4, 8, device="cuda", requires_grad=True)
    (expected,) = torch.autograd.grad((torch.sigmoid(x) ** 2).sum(), x)
    checkpoint = CheckpointWithoutOutput()
    y = checkpoint.checkpoint(torch.sigmoid, x)
    z = y * y
    checkpoint.discard_output_and_register_recompute(z)
    assert y.untyped_storage().size() == 0
    z.sum().backward()
    torch.testing.assert_close(x.grad, expected)
