"""Entry point that torch calls when it is imported (its ``torch.backends`` autoload of device backends)."""

from mindspeed_ms.config import settings


def start() -> None:
    """Switch the bridge on if the environment variable MINDSPEED_MS_AUTOLOAD is ``1``, else do nothing."""
    if settings.AUTOLOAD.value:
        import mindspeed_ms.patch  # noqa: F401
