"""Runs a CUDA Megatron script on plain torch CPU and gloo: the reference that knows nothing of our device.

    python -m tests.reference.plain_torch SCRIPT ARGS...
    torchrun --nproc-per-node 2 -m tests.reference.plain_torch SCRIPT ARGS...
    TORCHDYNAMO_DISABLE=0 python -m tests.reference.plain_torch SCRIPT ARGS...

Megatron asks for device "cuda", for nccl and for a few CUDA extensions. Here "cuda" is read as the CPU, nccl
as gloo, and each extension is replaced by the same mathematics in torch. Nothing of `mindspeed_ms` is
imported: a script that starts with `import mindspeed_ms.patch` finds an empty module under that name.

Every operator runs eagerly, because compiled code fuses, and so rounds, in its own way. With
TORCHDYNAMO_DISABLE=0, torch's own variable, Megatron's jit fuser compiles as it does on CUDA.

Checked against recorded curves of stock pretrain_gpt.py in tests/distributed/test_stock_curves.py.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.machinery
import logging
import multiprocessing
import os
import runpy
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Compiled code fuses, and so rounds, in its own way.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# An installed mindspeed_ms is a device backend that torch would load by itself.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import torch
import torch._dynamo  # torch.optim imports it: its table of torch's functions must be made from the real ones
import torch.distributed as dist
import torch.utils._triton
import wrapt

EAGER = os.environ["TORCHDYNAMO_DISABLE"] == "1"
FACTORIES = (
    *("arange", "as_tensor", "asarray", "empty", "empty_like", "empty_strided", "eye", "full", "full_like"),
    *("linspace", "logspace", "ones", "ones_like", "rand", "rand_like", "randint", "randint_like", "randn"),
    *("randn_like", "randperm", "tensor", "tril_indices", "triu_indices", "zeros", "zeros_like"),
)
TENSOR_METHODS = ("to", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")


def on_cpu(device: Any) -> Any:
    """`device` with every spelling of a CUDA device (name, `torch.device`, index) replaced by the CPU."""
    if isinstance(device, bool) or device is None:
        return device
    if isinstance(device, int):
        return torch.device("cpu")
    if isinstance(device, (str, torch.device)) and str(device).startswith("cuda"):
        return torch.device("cpu")
    return device


def with_device_on_cpu(function: Callable) -> Callable:
    """`function` with a CUDA device in its `device` keyword read as the CPU."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = on_cpu(kwargs["device"])
        return function(*args, **kwargs)

    return call


def alias_tensors() -> None:
    """Factories, `Tensor.to`, `Tensor.cuda`, `Module.to` and `Tensor.type` take "cuda" for the CPU."""
    for name in FACTORIES:
        setattr(torch, name, with_device_on_cpu(getattr(torch, name)))
    for name in TENSOR_METHODS:
        setattr(torch.Tensor, name, with_device_on_cpu(getattr(torch.Tensor, name)))
    to_keyword_only = torch.Tensor.to

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and isinstance(args[0], (str, int, torch.device)):
            args = (on_cpu(args[0]), *args[1:])
        return to_keyword_only(self, *args, **kwargs)

    def cuda(self: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        return self

    torch.Tensor.to = to
    torch.Tensor.cuda = cuda
    torch.Tensor.pin_memory = cuda  # a torch that is built for CUDA would look for a driver
    torch.nn.Module.cuda = cuda
    module_to = torch.nn.Module.to
    torch.nn.Module.to = lambda self, *args, **kwargs: module_to(
        self,
        *(on_cpu(a) if isinstance(a, (str, torch.device)) else a for a in args),
        **{k: on_cpu(v) if k == "device" else v for k, v in kwargs.items()},
    )
    tensor_type = torch.Tensor.type

    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # Megatron's optimizers sort parameters by the strings "torch.cuda.FloatTensor" and its like.
        if args or kwargs:
            return tensor_type(self, *args, **kwargs)
        return tensor_type(self).replace("torch.", "torch.cuda.", 1)

    torch.Tensor.type = type_name
    if EAGER:  # also what asks for a compiler in so many words
        torch.compile = lambda model=None, **_: model if model is not None else (lambda function: function)


class Stream:
    """A CUDA stream on a device that runs everything at once: there is nothing to wait for."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.device = torch.device("cpu")

    def wait_stream(self, _stream: Stream) -> None: ...

    def wait_event(self, _event: Event) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_exc: object) -> None: ...


class Event:
    """A CUDA event of such a stream: it has always happened."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def record(self, _stream: Stream | None = None) -> None: ...

    def wait(self, _stream: Stream | None = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _end: Event) -> float:
        return 0.0


class NoContext:
    """Stands for `torch.cuda.device` and `torch.cuda.stream`: a context manager that changes nothing."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_exc: object) -> None: ...


def alias_cuda_module() -> None:
    """`torch.cuda`: a device per local rank, streams without effect, the CPU generator as CUDA's."""
    cuda = torch.cuda
    cpu = torch.device("cpu")
    stream = Stream()
    properties = types.SimpleNamespace(
        name="cpu", major=9, minor=0, multi_processor_count=1, total_memory=0, gcnArchName="", warp_size=32
    )

    def nothing(*_args: Any, **_kwargs: Any) -> None: ...

    def zero(*_args: Any, **_kwargs: Any) -> int:
        return 0

    replacements: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "current_device": lambda: cpu,  # an index would name an accelerator
        "set_device": nothing,
        "synchronize": nothing,
        "init": nothing,
        "_lazy_init": nothing,
        "_lazy_call": lambda call, **_: call(),
        "empty_cache": nothing,
        "ipc_collect": nothing,
        "reset_peak_memory_stats": nothing,
        "memory_stats": lambda *_: {},
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (properties.major, properties.minor),
        "get_device_name": lambda *_: properties.name,
        "manual_seed": torch.default_generator.manual_seed,
        "manual_seed_all": torch.default_generator.manual_seed,
        "get_rng_state": lambda *_args, **_kwargs: torch.get_rng_state(),
        "set_rng_state": lambda state, *_args, **_kwargs: torch.set_rng_state(state),
        "default_generators": {cpu: torch.default_generator},
        "current_stream": lambda *_: stream,
        "default_stream": lambda *_: stream,
        "set_stream": nothing,
        "Stream": Stream,
        "Event": Event,
        "stream": NoContext,
        "device": NoContext,
    }
    for name in ("allocated", "reserved"):
        replacements |= {f"memory_{name}": zero, f"max_memory_{name}": zero}
    for name, value in replacements.items():
        # Each an object of its own: torch's compiler has one rule for each function that it knows.
        own = functools.partial(value) if callable(value) and not isinstance(value, type) else value
        setattr(cuda, name, own)
    for name in ("get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all"):
        setattr(cuda.random, name, replacements[name])
    for name in ("range_push", "range_pop", "mark"):
        setattr(cuda.nvtx, name, functools.partial(nothing))
    # A torch that is built for CUDA names that, and asks its driver for streams.
    torch.accelerator.current_accelerator = lambda check_available=False: None


def alias_distributed() -> None:
    """nccl becomes gloo, and the averages that gloo lacks become a sum and a division."""

    def with_gloo(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            args = tuple("gloo" if a == "nccl" else a for a in args)
            if kwargs.get("backend") is not None and "nccl" in str(kwargs["backend"]):
                kwargs["backend"] = "gloo"
            kwargs.pop("pg_options", None)
            kwargs.pop("device_id", None)
            return function(*args, **kwargs)

        return call

    dist.init_process_group = with_gloo(dist.init_process_group)
    dist.new_group = with_gloo(dist.new_group)
    dist.new_subgroups_by_enumeration = with_gloo(dist.new_subgroups_by_enumeration)
    barrier = dist.barrier
    dist.barrier = lambda group=None, async_op=False, device_ids=None: barrier(group, async_op)


class _TritonName:
    """Any name of triton: usable as annotation, as decorator (gives back what it decorates) and as module."""

    def __call__(self, *args: Any, **_kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else self

    def __getattr__(self, name: str) -> _TritonName:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, _key: Any) -> _TritonName:
        return self


def stand_in_for_triton() -> None:
    """Megatron imports triton where it only defines GPU kernels: give it names, no kernel can be launched."""
    if not EAGER:
        # torch's compiler must find that there is no triton.
        importlib.import_module("torch._inductor.runtime.triton_compat")

    class Names(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return _TritonName()

    for name in ("triton", "triton.language"):
        module = Names(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None, is_package=True)
        module.__path__ = []
        sys.modules[name] = module
    sys.modules["triton"].language = sys.modules["triton.language"]
    sys.modules["triton"].__version__ = "0.0.0"
    # torch, too, looks for triton: it must not take these names for a compiler.
    torch.utils._triton.has_triton_package = lambda: False


def stand_in_for_wgrad_extension() -> None:
    """apex's `fused_weight_gradient_mlp_cuda`: main_grad += grad_output^T input, in main_grad's dtype."""

    def accumulate(total_input: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor) -> None:
        rows_in = total_input.reshape(-1, total_input.shape[-1])
        rows_out = grad_output.reshape(-1, grad_output.shape[-1])
        main_grad.add_((rows_out.t() @ rows_in).to(main_grad.dtype))

    extension = types.ModuleType("fused_weight_gradient_mlp_cuda")
    extension.wgrad_gemm_accum_fp32 = accumulate
    extension.wgrad_gemm_accum_fp16 = accumulate
    sys.modules[extension.__name__] = extension


def _norm(config: Any, hidden_size: int, eps: float = 1e-5, **_kwargs: Any) -> torch.nn.Module:
    """torch's LayerNorm or RMSNorm, its parameters marked as apex's are under sequence parallelism."""
    norm_class = {"LayerNorm": torch.nn.LayerNorm, "RMSNorm": torch.nn.RMSNorm}[config.normalization]
    norm = norm_class(hidden_size, eps)
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel
    return norm


def alias_megatron() -> None:
    """The places in Megatron that call a CUDA kernel, or that ask a tensor whether it is on a GPU."""

    @wrapt.when_imported("megatron.core.transformer.torch_norm")
    def _(module: types.ModuleType) -> None:
        module.WrappedTorchNorm.__new__ = staticmethod(lambda _cls, *args, **kwargs: _norm(*args, **kwargs))

    @wrapt.when_imported("megatron.core.fusions.fused_softmax")
    def _(module: types.ModuleType) -> None:
        module.FusedScaleMaskSoftmax.is_kernel_available = lambda *_args: False

    @wrapt.when_imported("megatron.core.transformer.dot_product_attention")
    def _(module: types.ModuleType) -> None:
        made = module.DotProductAttention.__init__

        def with_widths(
            self: Any, *args: Any, k_channels: int | None = None, v_channels: int | None = None, **kwargs: Any
        ) -> None:
            # Latent attention names the widths of its heads, which only Transformer Engine's class takes.
            made(self, *args, **kwargs)
            if v_channels is not None:
                self.hidden_size_per_partition = v_channels * self.num_attention_heads_per_partition

        module.DotProductAttention.__init__ = with_widths

    @wrapt.when_imported("megatron.core.models.gpt.gpt_layer_specs")
    def _(module: types.ModuleType) -> None:
        local = module.get_gpt_layer_local_spec

        def named_as_by_default(num_experts: int | None = None, *args: Any, **kwargs: Any) -> Any:
            # The norm before experts is saved under its name before an MLP: the default layers would not
            # load it.
            spec = local(num_experts, *args, **kwargs)
            if num_experts:
                spec.submodules.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.", None)
            return spec

        module.get_gpt_layer_local_spec = named_as_by_default

    @wrapt.when_imported("megatron.core.transformer.multi_latent_attention")
    def _(module: types.ModuleType) -> None:
        module.HAVE_TE = (
            False  # its import succeeds without Transformer Engine, and gives None for the classes
        )

    @wrapt.when_imported("megatron.core.transformer.moe.moe_utils")
    def _(module: types.ModuleType) -> None:
        module.te_general_gemm = None

        def to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
            return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

        module.maybe_move_tensor_to_cpu = to_host

    @wrapt.when_imported("megatron.core.datasets.utils")
    def _(module: types.ModuleType) -> None:
        folder = Path(module.__file__).parent
        if not (folder / "Makefile").exists() and list(folder.glob("helpers_cpp*.so")):
            module.compile_helpers = lambda: None  # a wheel: compiled already

    @wrapt.when_imported("megatron.legacy.fused_kernels")
    def _(module: types.ModuleType) -> None:
        module.load = lambda args: None

    @wrapt.when_imported("megatron.core.dist_checkpointing.strategies.filesystem_async")
    def _(module: types.ModuleType) -> None:
        def queue(mp_mode: str = "fork") -> Any:
            if module._results_queue is None:
                module._results_queue = multiprocessing.get_context("fork").Manager().Queue()
            return module._results_queue

        # Megatron spawns the process of its queue: that would import the script without all of this.
        module._get_write_results_queue = module.get_write_results_queue = queue  # the name from 0.17 on

    @wrapt.when_imported("megatron.training.initialize")
    def _(module: types.ModuleType) -> None:
        # The warm-up draws from CUDA's generator; here it would move the CPU's, which draws the weights.
        module._warmup_jit_function = lambda **_sizes: None


def install() -> None:
    """Everything above, and an empty `mindspeed_ms.patch`. To be called before Megatron is imported."""
    if "megatron.core" in sys.modules or "mindspeed_ms.patch" in sys.modules:
        raise ImportError("plain_torch must be installed before Megatron and mindspeed_ms are imported")
    alias_tensors()
    alias_cuda_module()
    alias_distributed()
    stand_in_for_triton()
    stand_in_for_wgrad_extension()
    alias_megatron()
    # Weights and dropout are drawn from the CPU's generator on purpose; Megatron warns each time they are.
    logging.getLogger("megatron.core.tensor_parallel.random").setLevel(logging.ERROR)
    # On the path rather than in sys.modules: processes that Megatron spawns inherit it.
    sys.path.insert(0, str(Path(__file__).parent / "no_device"))


def run_script(script: str, args: list[str]) -> None:
    """Runs `script` as `__main__`, as `python SCRIPT ARGS` would."""
    sys.argv = [script, *args]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    runpy.run_path(script, run_name="__main__")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(usage="python -m tests.reference.plain_torch SCRIPT ARGS...")
    parser.add_argument("script")
    parser.add_argument("args", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    install()
    run_script(chosen.script, chosen.args)


if __name__ == "__main__":
    main()
