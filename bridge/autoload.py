"""Entry point that torch calls when it is imported (its ``torch.backends`` autoload of device backends)."""

import os


def start() -> None:
    """Switch the bridge on if the environment variable MINDSPEED_MS_AUTOLOAD is ``1``, else do nothing."""
    if os.environ.get("MINDSPEED_MS_AUTOLOAD") == "1":
        import mindspeed_ms.patch  # noqa: F401
