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
    """Make the extension for the Python that runs; exits with a sentence if that fails."""
    import megatron.core.datasets.utils as utils
    import pybind11

    headers = dict.fromkeys((sysconfig.get_path("include"), pybind11.get_include()))
    command = ["make", "-C", str(Path(utils.__file__).parent)]
    command.append(f"LIBEXT={sysconfig.get_config_var('EXT_SUFFIX')}")
    command.append("CPPFLAGS=" + " ".join(f"-I{folder}" for folder in headers))
    if subprocess.run(command).returncode:
        sys.exit(f"the data set index builder cannot be compiled: {' '.join(command)} failed, see above")
