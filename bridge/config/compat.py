"""The packages that this one stands on or changes, and their releases: the one place that says which.

Only the standard library is imported: setup.py runs this file to know what to ask pip for.
"""

from __future__ import annotations

from dataclasses import dataclass

PYTHON = ">=3.10,<3.13"
"""Versions of Python that the package runs on (PEP 440 specifier)."""


@dataclass(frozen=True)
class Package:
    """A package by its import name (the key of ``PACKAGES``).

    ``distribution``: its name on PyPI. ``supported``: PEP 440 specifier, empty for any. ``verified``: the
    releases that patch targets are verified against. ``version_module``: whose ``__version__`` tells what is
    installed, where that is not the package itself.
    """

    distribution: str
    supported: str = ""
    verified: tuple[str, ...] = ()
    version_module: str = ""


PACKAGES = {
    "torch": Package("torch", "==2.13.*", ("2.13.0",)),
    "mindspore": Package("mindspore", "==2.10.*"),
    "megatron": Package(
        "megatron-core",
        ">=0.12,<0.20",
        (
            *("0.12.0", "0.12.1", "0.12.2", "0.12.3", "0.13.0", "0.13.1", "0.14.0"),
            *("0.15.0", "0.15.1", "0.15.2", "0.15.3", "0.16.0", "0.16.1"),
            *("0.17.0", "0.17.1", "0.18.0", "0.18.2", "0.19.0", "0.19.2"),
        ),
        "megatron.core.package_info",
    ),
    "numpy": Package("numpy", "<2"),
}


def package(name: str) -> Package:
    """What is known of the package with the import name ``name``; any release of one not listed will do."""
    return PACKAGES.get(name) or Package(name)


def requirements() -> dict[str, str]:
    """Distribution -> specifier of what pip has to install beside Python."""
    return {p.distribution: p.supported for p in PACKAGES.values()}


PRIVATE_TORCH = {
    "torch._C.Argument": "schemas of aten operators are read argument by argument",
    "torch._C.DispatchKey": "fused kernels are registered key by key",
    "torch._C.DispatchKeySet": "a fused kernel calls the next key by itself",
    "torch._C.FunctionSchema": "schemas of aten operators tell in-place and out= variants",
    "torch._C._AutoDispatchBelowAutograd": "a fused kernel runs below autograd without a redispatch",
    "torch._C._ExcludeDispatchKeyGuard": "autocast is off inside a fused kernel",
    "torch._C._ForceDispatchKeyGuard": "a backward runs under the keys of its forward",
    "torch._C._accelerator_getStream": "torch.accelerator gives no stream of its subclass",
    "torch._C._accelerator_setStream": "torch.accelerator takes no stream of a subclass",
    "torch._C._dispatch_has_kernel_for_dispatch_key": "an operator that is there is not registered twice",
    "torch._C._dispatch_tls_local_exclude_set": "a backward runs under the keys of its forward",
    "torch._C._dispatch_tls_local_include_set": "a backward runs under the keys of its forward",
    "torch._C._jit_get_schemas_for_operator": "all overloads of an operator, without importing torch.ops",
    "torch._register_device_module": "torch.npu; torch documents it for devices of this kind",
    "torch._subclasses.fake_tensor.FakeTensor": "tracers need the operator whole",
    "torch._subclasses.functional_tensor.FunctionalTensor": "tracers need the operator whole",
    "torch.distributed.Backend._plugins": "a name that is there is not registered twice",
    "torch.distributed.distributed_c10d._get_default_group": "the group that a call without one means",
    "torch.distributed.distributed_c10d._get_default_store": "MindSpore's store is led to torch's",
    "torch.distributed.distributed_c10d._get_default_timeout": "MindSpore's groups wait as long as torch's",
    "torch.distributed.distributed_c10d._resolve_process_group": "operators take groups by name",
    "torch.distributed.distributed_c10d._world": "every group, and the backend name that it answers with",
    "torch.utils._pytree.tree_leaves": "selftest compares whatever an operator returns",
    "torch.utils._pytree.tree_map_only": "selftest casts and moves the tensors among sample arguments",
}
"""Private names of torch that the package calls, and for what: look here first when torch is renewed.

Those that it replaces are targets of patches (``mindspeed-ms patches``).
"""
