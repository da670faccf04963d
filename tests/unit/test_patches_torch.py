"""What ``import mindspeed_ms.patch`` changes in torch: what is declared, nothing else, and not for ever."""

import subprocess
import sys
import textwrap

from mindspeed_ms.patches.registry import State

SNAPSHOT = """
import sys, types
import torch
from torch.cuda.memory import memory_allocated  # a script's own copies, made before ours is imported
from torch import Generator, is_autocast_enabled

def modules():
    found = [m for m in list(sys.modules.values()) if isinstance(m, types.ModuleType)]
    return [m for m in found if m.__name__.partition(".")[0] == "torch"]

CLASSES = {c for m in modules() for c in vars(m).values() if isinstance(c, type)}
CLASSES = [c for c in CLASSES if (c.__module__ or "").partition(".")[0] == "torch"]

def snapshot():
    seen = {(m.__name__, name): value for m in modules() for name, value in vars(m).items()}
    return seen | {(c.__module__, f"{c.__qualname__}.{n}"): v for c in CLASSES for n, v in vars(c).items()}

# What torch itself gives a device that is registered with it.
REGISTERED = ("npu", "is_npu", "_privateuse1_backend_name")

def changed(before, after):
    # What is not the same in both, without the marks of the registered device and backends.
    for key in sorted(before.keys() | after.keys()):
        module, path = key
        registered = path.rpartition(".")[2] in REGISTERED or module == "torch.npu"
        listed = path.startswith(("DeviceType.", "ProfilerActivity.", "Backend."))
        if after.get(key) is not before.get(key) and not registered and not listed:
            yield key

before = snapshot()
import mindspeed_ms.patch
patched = snapshot()
"""


def run(code: str) -> list[str]:
    """Lines that ``code`` prints in a fresh interpreter, after ``SNAPSHOT``."""
    done = subprocess.run(
        [sys.executable, "-c", SNAPSHOT + textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_nothing_changes_that_is_not_declared():
    """Names that changed are targets, or copies of targets, or the names of the device npu itself."""
    undeclared = run("""
        from mindspeed_ms.patches import registry
        targets = {(r.patch.module, r.patch.path) for r in registry.default.records()}
        replaced = [before[key] for key in targets if callable(before.get(key))]
        for key in changed(before, patched):
            if key not in targets and not any(before.get(key) is value for value in replaced):
                print(*key)
    """)
    assert undeclared == []


def test_every_target_is_in_place():
    states = run("""
        from mindspeed_ms.patches import registry
        import torch._inductor.compile_fx
        import torch.nn.attention.flex_attention
        for record in registry.default.records():
            if record.patch.package == "torch":
                print(record.state.value, record.in_place())
    """)
    assert set(states) == {f"{State.APPLIED.value} True"}
    assert len(states) > 90


def test_disarmed_torch_is_as_it_was():
    said = run("""
        from mindspeed_ms.patches import registry
        registry.disarm()
        for key in changed(before, snapshot()):
            print(*key)
        print(torch.cuda.is_available(), torch.Tensor.type is torch._C.TensorBase.type)
        registry.arm()
        allocated = torch.cuda.memory.memory_allocated
        print(torch.cuda.is_available(), allocated is patched["torch.cuda", "memory_allocated"])
        registry.disarm()
        print(torch.cuda.is_available())
    """)
    assert said == ["False True", "True True", "False"]


def test_copies_of_a_script_follow():
    assert run("""
        print(memory_allocated is torch.cuda.memory_allocated is torch.cuda.memory.memory_allocated)
        print(Generator(device="cuda").device, isinstance(torch.default_generator, Generator))
        with torch.autocast("cuda"):
            print(is_autocast_enabled())
        print(torch._C.Generator is before["torch._C", "Generator"])
    """) == ["True", "npu:0 True", "True", "True"]


def test_import_loads_no_part_of_torch_that_torch_does_not():
    assert run("""
        loaded = {name for name, _ in before}
        print({n for n in sys.modules if n.startswith("torch.")} - loaded)
    """) == ["{'torch.npu'}"]
