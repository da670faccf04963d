"""A Megatron-Core pretraining recipe in small modules; `examples/pretrain_gpt.py` puts them together."""
