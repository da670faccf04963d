"""DotProductAttention of real Megatron-Core with and without the kernel, in a process with the device on."""

import sys

from processes import launch

SCRIPT = """
import mindspeed_ms.patch
import torch, torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from mindspeed_ms import routes

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
parallel_state.initialize_model_parallel()
tensor_parallel.model_parallel_cuda_manual_seed(1)

def check(what, groups=4, mask=None, mask_type=AttnMaskType.causal, dtype=torch.float32, **options):
    config = TransformerConfig(num_layers=2, hidden_size=64, num_attention_heads=4, num_query_groups=groups,
                               attention_dropout=0.0, bf16=dtype == torch.bfloat16, **options)
    module = DotProductAttention(config, 2, mask_type, "self")
    torch.manual_seed(0)
    shapes = [(48, 2, heads, 16) for heads in (4, groups, groups)]
    inputs = [torch.randn(s, device="cuda").to(dtype).requires_grad_() for s in shapes]
    results = []
    for route in ("auto", "host"):
        with routes.route(route):
            out = module(*inputs, mask)
            results.append((out, *torch.autograd.grad(out.float().square().sum(), inputs)))
    tolerance = dict(rtol=2e-5, atol=2e-5) if dtype == torch.float32 else dict(rtol=0.03, atol=0.03)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)
    # The kernel and Megatron's way round differently: equal bits would mean that the kernel was not used.
    assert any(not torch.equal(a, b) for a, b in zip(*results)), what
    print(what, "agrees")

causal = torch.ones(1, 1, 48, 48, dtype=torch.bool, device="cuda").triu(1)
other = torch.rand(2, 1, 48, 48, device="cuda") < 0.3
check("causal")
check("causal mask given", mask=causal)
check("padding mask", mask=other, mask_type=AttnMaskType.padding)
check("grouped", groups=2)
check("window", window_size=(5, 0))
check("layer scaling", apply_query_key_layer_scaling=True)
check("bf16", dtype=torch.bfloat16)
dist.destroy_process_group()
"""


def test_kernel_agrees_with_megatrons_own_attention():
    done = launch(sys.executable, "-c", SCRIPT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agrees") == 7
