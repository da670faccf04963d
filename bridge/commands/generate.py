"""``mindspeed-ms generate``: text from a checkpoint of Megatron's trainer, one token after the other."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from mindspeed_ms.commands.errors import CommandError
from mindspeed_ms.commands.run import be_a_group_of_one

HELP = "continue a prompt with the model of a checkpoint"

_ONE = (
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"),
    *("expert_model_parallel_size", "expert_tensor_parallel_size", "data_parallel_size"),
    *("world_size", "micro_batch_size", "global_batch_size"),
)
_NONE = (
    *("virtual_pipeline_model_parallel_size", "pipeline_model_parallel_layout"),
    *("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"),
    *("hierarchical_context_parallel_sizes", "save", "tensorboard_dir", "wandb_project", "rampup_batch_size"),
)
_OFF = (
    *("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split", "sequence_parallel"),
    *("use_distributed_optimizer", "use_megatron_fsdp", "use_torch_fsdp2"),
    *("overlap_param_gather", "overlap_grad_reduce"),
)
_ON = ("skip_train", "no_load_optim", "no_load_rng", "finetune", "perform_initialization")
ALONE = {
    "rank": 0,
    **dict.fromkeys(_ONE, 1),
    **dict.fromkeys(_NONE),
    **dict.fromkeys(_OFF, False),
    **dict.fromkeys(_ON, True),
}
"""What becomes of a run's arguments where one rank loads its weights and nothing else."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``generate``."""
    parser.add_argument("--load", type=Path, required=True, metavar="DIR", help="what --save named")
    parser.add_argument(
        "--step", type=int, metavar="N", help="iteration of the checkpoint; default: the newest"
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what is continued")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="at most; default 64")
    parser.add_argument("--top-k", type=int, default=1, metavar="N", help="draw among so many; default 1")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the draw; default 1")
    parser.add_argument("--seed", type=int, default=1, help="of the draw; default 1")


def _saved_arguments(folder: Path, step: int | None) -> tuple[argparse.Namespace, int]:
    """The arguments of the run that saved ``folder``, and the iteration that is loaded."""
    from megatron.core.dist_checkpointing import load_common_state_dict
    from megatron.core.dist_checkpointing.core import CheckpointingException

    tracker = folder / "latest_checkpointed_iteration.txt"
    try:
        iteration = int(tracker.read_text()) if step is None else step
        found = load_common_state_dict(str(folder / f"iter_{iteration:07d}"))
    except (OSError, ValueError, KeyError, EOFError, AssertionError, CheckpointingException) as error:
        raise CommandError(f"{folder} has no checkpoint of --ckpt-format torch_dist: {error}") from error
    return found["args"], iteration


def _model(saved: argparse.Namespace, options: argparse.Namespace, iteration: int) -> tuple[Any, Any]:
    """Model with its weights, in evaluation mode, and the arguments in force."""
    from megatron.core import package_info

    if (package_info.MAJOR, package_info.MINOR) < (0, 19):
        raise CommandError(
            f"Megatron-Core {package_info.__version__} has no models: install 0.19 (Python 3.12)"
        )
    from megatron.core.enums import ModelType
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
    from megatron.training import argument_utils, arguments, global_vars, initialize, training

    args = arguments.add_megatron_arguments(argparse.ArgumentParser()).parse_args([])
    vars(args).update({**vars(saved), **ALONE, "load": str(options.load), "ckpt_step": iteration})
    global_vars.set_global_variables(args)
    initialize.initialize_megatron()
    kind = "hybrid" if args.hybrid_layer_pattern else "gpt"
    config = getattr(argument_utils, f"{kind}_config_from_args")(args)
    parts = argument_utils.pretrain_cfg_container_from_args(args, config)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    (model,), *_ = training.setup_model_and_optimizer(
        ModelType.encoder_or_decoder, cfg_container=parts, pg_collection=groups
    )
    return model.eval(), build_tokenizer(args)


def sample(
    model: Any, ids: list[int], end: int, limit: int, options: argparse.Namespace, size: int
) -> list[int]:
    """``ids`` and the tokens that follow, up to ``limit`` in all or to ``end``.

    Each is drawn from the ``options.top_k`` likeliest of the first ``size`` of the vocabulary, the rest of
    which is padding. The whole sequence is computed anew for each token: simple, and right for every model.
    """
    import torch

    draw = torch.Generator().manual_seed(options.seed)
    while len(ids) < limit and (not ids or ids[-1] != end):
        tokens = torch.tensor([ids], device="cuda")
        positions = torch.arange(len(ids), device="cuda").unsqueeze(0)
        with torch.no_grad():
            logits = model(tokens, positions, None)[0, -1, :size].float().cpu()
        best = torch.topk(logits, min(options.top_k, size))
        chances = torch.softmax(best.values / options.temperature, dim=0)
        ids = [*ids, int(best.indices[torch.multinomial(chances, 1, generator=draw)])]
    return ids


def execute(options: argparse.Namespace) -> int:
    """Print prompt and continuation. Raises CommandError for what is not there or wrong."""
    if options.top_k < 1 or options.tokens < 1 or options.temperature <= 0:
        raise CommandError("--top-k and --tokens must be at least 1, and --temperature above 0")
    be_a_group_of_one()
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    import mindspeed_ms.patch  # noqa: F401

    saved, iteration = _saved_arguments(options.load, options.step)
    model, tokenizer = _model(saved, options, iteration)
    ids = list(tokenizer.tokenize(options.prompt))
    limit = min(len(ids) + options.tokens, saved.max_position_embeddings)
    if not 0 < len(ids) < saved.max_position_embeddings:
        raise CommandError(
            f"the prompt has {len(ids)} tokens: 1 to {saved.max_position_embeddings - 1} will do"
        )
    found = sample(model, ids, tokenizer.eod, limit, options, tokenizer.vocab_size)
    print(f"---- iteration {iteration} of {options.load} ----\n{tokenizer.detokenize(found)}")
    return 0
