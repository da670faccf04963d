"""What ``import mindspeed_ms.patch`` changes in torch, one module per topic.

Tensors asked for on device "cuda" are redirected inside torch's dispatcher (csrc/aten/cuda_redirect.cpp).
What remains for Python is here: the functions of ``torch.cuda``, its types, and the few functions of torch
that take a device by name and do not dispatch. A module here declares, as those of ``patches/megatron`` do.
"""
