"""Stock Megatron-LM / Megatron-Core scripts, written for PyTorch + CUDA, on MindSpore without a changed line.

``import mindspeed_ms.patch`` switches it on; importing this package alone does nothing and costs nothing.
"""

__version__ = "0.1.0"
