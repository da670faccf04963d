"""The patches, one module per Megatron area; :func:`mindspeed_ms.patches.registry.arm` imports them all.

A module here only declares: it may import torch and the registry at its top, and imports everything else
(Megatron, kernels, MindSpore) inside the functions that need it. It never computes.
"""
