"""Fixtures that several test folders share."""

import os
from pathlib import Path

import pytest

# The shipped routes are tested, not those that `mindspeed-ms calibrate` may have kept here.
SHIPPED = Path(__file__).resolve().parents[1] / "bridge" / "ops" / "auto_routes.json"
os.environ.setdefault("MINDSPEED_MS_AUTO_ROUTES", str(SHIPPED))


@pytest.fixture(scope="session")
def megatron_lm_path() -> Path:
    """A Megatron-LM checkout, named by MEGATRON_LM_PATH; the test is skipped without one."""
    path = os.environ.get("MEGATRON_LM_PATH")
    if not path:
        pytest.skip("needs a Megatron-LM checkout: set MEGATRON_LM_PATH")
    return Path(path)


@pytest.fixture(scope="session")
def pretrain() -> Path:
    """The project's own training script; the test is skipped where it finds no trainer of Megatron."""
    from megatron.core import package_info

    if (package_info.MAJOR, package_info.MINOR) < (0, 19) and not os.environ.get("MEGATRON_LM_PATH"):
        pytest.skip(f"Megatron-Core {package_info.__version__} has no trainer: set MEGATRON_LM_PATH")
    return Path(__file__).resolve().parents[1] / "examples" / "pretrain_gpt.py"
