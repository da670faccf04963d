"""Build script: package layout and the two C++ extensions.

``bridge/`` installs as ``mindspeed_ms`` and ``patches/`` as ``mindspeed_ms.patches``.

* ``mindspeed_ms._runtime`` is linked to torch: the device's allocator, guard, hooks, generator (csrc/runtime)
  and its ATen registrations (csrc/aten).
* ``mindspeed_ms._native`` knows neither torch nor MindSpore: fused CPU kernels (csrc/kernels) and the
  shared-memory collectives (csrc/comm), bound by pybind11 on raw pointers.

Both build on x86-64 and aarch64 with the same flags: csrc/kernels/foreach_isa.h chooses instruction sets, and
tests/aarch64 cross-compiles with this script.
"""

import runpy
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).resolve().parent
compat = runpy.run_path(str(ROOT / "bridge/config/compat.py"))


def sources(*folders: str) -> list[str]:
    """All .cpp files directly in csrc/<folder>, as paths relative to the project."""
    return sorted(str(p.relative_to(ROOT)) for f in folders for p in (ROOT / "csrc" / f).glob("*.cpp"))


# what Megatron's trainer and scripts import and megatron-core does not ask for; einops: Megatron FSDP
TRAINER = [
    "pydantic",
    "regex",
    "sentencepiece",
    "tiktoken",
    "tokenizers",
    "transformers",
    "pybind11",
    "einops",
]

packages = ["mindspeed_ms", *(f"mindspeed_ms.{p}" for p in find_packages("bridge"))]
packages += ["mindspeed_ms.patches", *(f"mindspeed_ms.patches.{p}" for p in find_packages("patches"))]

# -g0: Python's own flags ask for debug information, which doubles the compile time.
runtime = CppExtension(
    "mindspeed_ms._runtime",
    sources("runtime", "aten"),
    include_dirs=[str(ROOT / "csrc")],
    extra_compile_args=["-g0", "-O2", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wno-sign-compare"],
)

# -fno-math-errno/-fno-trapping-math let the compiler vectorise libm-style code (measured 8x on AdamW);
# -ffast-math is not used: kernels must keep NaN and Inf. -Wno-psabi: vectors cross no library's boundary.
native = Extension(
    "mindspeed_ms._native",
    sources(".", "kernels", "comm"),
    include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
    extra_compile_args=[
        "-g0",
        "-O3",
        "-std=c++20",
        "-fvisibility=hidden",
        "-Wall",
        "-pthread",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wno-psabi",
    ],
    extra_link_args=["-pthread", "-lrt"],
    language="c++",
)

setup(
    name="mindspeed-ms",
    version="0.1.0",
    description="Stock Megatron-LM scripts, written for PyTorch + CUDA, on MindSpore without a changed line",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=compat["PYTHON"],
    packages=packages,
    package_dir={"mindspeed_ms": "bridge", "mindspeed_ms.patches": "patches"},
    package_data={"mindspeed_ms": ["py.typed", "*.pyi", "*/*.json", "*/*/*.json"]},
    ext_modules=[runtime, native],
    cmdclass={"build_ext": BuildExtension},
    install_requires=[
        *(name + versions for name, versions in compat["requirements"]().items()),
        "wrapt>=1.16",
        "packaging",
    ],
    extras_require={
        "megatron-lm": TRAINER,
        "examples": [*TRAINER, "matplotlib", "tensorboard"],
        # what some flags of Megatron-LM import: --optimizer muon, lion, soap from 0.17 on; --logits-save-dir
        "megatron-options": ["emerging-optimizers; python_version >= '3.12'", "zstandard"],
        "test": ["pytest", "pytest-timeout", "expecttest"],
        # what Megatron-LM's tests/unit_tests import: tests/conformance/megatron_unit_tests.py runs them
        "megatron-tests": [
            *("pytest-mock", "pytest-asyncio", "einops", "griffe", "msgpack", "pyzmq", "mock", "requests"),
            *("tqdm", "click", "nltk", "boto3", "multi-storage-client", "pytest-timeout"),
            *("transformers", "httpx", "fastapi"),
        ],
    },
    entry_points={
        "console_scripts": ["mindspeed-ms = mindspeed_ms.commands.cli:main"],
        # torch calls it at `import torch`; it acts only if MINDSPEED_MS_AUTOLOAD=1
        "torch.backends": ["mindspeed_ms = mindspeed_ms.autoload:start"],
    },
)
