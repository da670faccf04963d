"""Has Megatron check the flags of a run on many cards, and counts the parameters of its model.

    WORLD_SIZE=1024 RANK=0 python -m tests.conformance.recipe_parameters FLAGS --vocab-size 128256

prints the number. The model is built whole, on the meta device: without memory. Needs Megatron-Core 0.19.
"""

from __future__ import annotations

import os
from contextlib import nullcontext

import mindspeed_ms.patch  # noqa: F401 - before Megatron
import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import random
from megatron.training import argument_utils, arguments
from mindspeed_ms.commands.generate import ALONE
from mindspeed_ms.commands.run import be_a_group_of_one


def main() -> None:
    """Raises what Megatron raises for flags that contradict each other or the number of cards."""
    args = arguments.parse_and_validate_args()
    vars(args).update(ALONE, padded_vocab_size=args.vocab_size, perform_initialization=False)
    for name in ("RANK", "WORLD_SIZE"):
        del os.environ[name]
    be_a_group_of_one()
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    kind = "hybrid" if args.hybrid_layer_pattern else "gpt"
    config = getattr(argument_utils, f"{kind}_config_from_args")(args)
    builder = config.get_builder_cls()(config)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    random.CudaRNGStatesTracker.fork = lambda *_: nullcontext()  # nothing is drawn
    torch.cuda.current_device = lambda: torch.device("meta")  # which Megatron asks where to put weights
    with torch.device("meta"):
        model = builder.build_model(groups, pre_process=True, post_process=True)
    print("parameters:", sum(weight.numel() for weight in model.parameters()))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
