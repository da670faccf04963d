"""Hugging Face folders in and out of Megatron-Core models; see README.md. Imported on that path only."""

from mindspeed_ms.hf.errors import ConfigError, UnsupportedModelError, WeightsError
from mindspeed_ms.hf.flags import fill
from mindspeed_ms.hf.load import load
from mindspeed_ms.hf.save import save

__all__ = ["ConfigError", "UnsupportedModelError", "WeightsError", "fill", "load", "save"]
