"""Megatron's data sets: the C++ index builder that a checkout compiles when it first trains."""

import subprocess
import sys
import sysconfig
from pathlib import Path

from mindspeed_ms.patches.registry import replace


@replace(
    "megatron.core.datasets.utils:compile_helpers",
    reason="its Makefile asks the python3-config on PATH, which need not be of the Python that runs",
)
def compile_helpers() -> None:
    """Make the extension for the Python that runs; exits with a sentence if that fails.

    A wheel has it compiled and brings no Makefile.
    """
    import megatron.core.datasets.utils as utils
    import pybind11

    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    folder = Path(utils.__file__).parent
    if (folder / f"helpers_cpp{suffix}").is_file() and not (folder / "Makefile").is_file():
        return
    headers = dict.fromkeys((sysconfig.get_path("include"), pybind11.get_include()))
    command = ["make", "-C", str(folder), f"LIBEXT={suffix}"]
    command.append("CPPFLAGS=" + " ".join(f"-I{header}" for header in headers))
    if subprocess.run(command).returncode:
        sys.exit(f"the data set index builder cannot be compiled: {' '.join(command)} failed, see above")
