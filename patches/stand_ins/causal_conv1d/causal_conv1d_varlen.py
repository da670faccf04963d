"""``causal_conv1d.causal_conv1d_varlen``."""

import torch
from mindspeed_ms.kernels.state_space import last_values


def causal_conv1d_varlen_states(x: torch.Tensor, cu_seqlens: torch.Tensor, state_len: int) -> torch.Tensor:
    """The last ``state_len`` tokens of each sequence in x ``(tokens, d)``: ``(sequences, d, state_len)``."""
    return last_values(x, cu_seqlens, state_len)
