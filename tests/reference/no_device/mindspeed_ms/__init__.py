"""Stands for the bridge in processes that run on plain torch, spawned helpers of Megatron included."""
