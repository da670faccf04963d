"""Pretrains a GPT with Megatron-Core on stock Megatron-LM flags; examples/*.sh are complete commands.

    python examples/pretrain_gpt.py FLAGS
    torchrun --nproc-per-node 2 examples/pretrain_gpt.py --tensor-model-parallel-size 2 FLAGS

The first import is all that distinguishes it from a script for CUDA.
"""

import mindspeed_ms.patch  # noqa: F401, I001 - before torch.cuda and Megatron are used

import sys


def main() -> None:
    """Parses, trains; ends with exit code 1 and one sentence when the user can put something right."""
    # Imported here because Megatron's checkpoint writer spawns a process that imports this file again.
    from recipe.arguments import parse_args
    from recipe.distributed import finish, initialize
    from recipe.errors import RecipeError
    from recipe.train import Trainer

    try:
        args = parse_args()
        initialize(args)
        Trainer(args).run()
    except RecipeError as error:
        # Not `finish`: it would wait for ranks that do not know of the error yet; torchrun ends them.
        sys.exit(f"pretrain_gpt.py: error: {error}")
    except NotImplementedError as error:
        if not str(error).startswith("MINDSPEED_MS_ROUTE=strict"):
            raise
        sys.exit(f"pretrain_gpt.py: error: {error}")  # names the operator
    finish()


if __name__ == "__main__":
    main()
