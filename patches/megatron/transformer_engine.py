"""Transformer Engine: the default layer specs need it."""

from mindspeed_ms.patches.transformer_engine import modules

modules.declare()
