"""``mamba_ssm.ops.triton``; nothing here is triton."""
