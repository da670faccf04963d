"""First import of a run on plain torch CPU: ``tests/reference/plain_torch.py``, loaded by its path.

Megatron's `is_te_min_version`, which its conftest calls for every test, fails where Transformer Engine is not
installed; here it answers no.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

import wrapt

_path = Path(__file__).parents[2] / "reference" / "plain_torch.py"
_spec = importlib.util.spec_from_file_location("plain_torch", _path)
plain_torch = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plain_torch)
plain_torch.install()


@wrapt.when_imported("megatron.core.utils")
def _no_transformer_engine(module: ModuleType) -> None:
    module._te_version = module.PkgVersion("0.0.0")
