"""What is changed in other packages so that their CUDA code runs on the device.

:mod:`.registry` holds what a patch is and when it is applied, :mod:`.verify` checks targets against a source
tree of Megatron without importing it, ``torch/<topic>.py`` and ``megatron/<area>.py`` declare the patches
themselves. :mod:`.stand_ins` are packages that Megatron imports and a machine without CUDA lacks.
:mod:`.listing` prints them all.
"""
