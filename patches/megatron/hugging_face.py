"""``--load`` and ``--save`` of Hugging Face folders, where Megatron knows its own checkpoints only."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindspeed_ms.patches.registry import around

PREFIX = "hf:"


def folder_of(value: str | None) -> Path | None:
    """The Hugging Face folder that a flag names: ``hf:DIR``, or DIR if it holds one and no checkpoint."""
    if value is None:
        return None
    if value.startswith(PREFIX):
        return Path(value.removeprefix(PREFIX))
    folder = Path(value)
    checkpoint = (folder / "latest_checkpointed_iteration.txt").is_file()
    return folder if not checkpoint and (folder / "config.json").is_file() else None


def model_of(value: str | None) -> Path | None:
    """The folder whose config.json a run's model follows: as :func:`folder_of`, and one that a run with
    ``--load DIR --save DIR`` saved its own checkpoints to.
    """
    if (folder := folder_of(value)) is not None or value is None:
        return folder
    weights = ("model.safetensors", "model.safetensors.index.json", "config.json")
    here = [(Path(value) / name).is_file() for name in weights]
    return Path(value) if any(here[:2]) and here[2] else None


@around(
    "megatron.training.checkpointing:load_checkpoint",
    reason="--load hf:DIR is no checkpoint of Megatron",
)
def load_checkpoint(
    original: Callable[..., Any],
    ddp_model: Any,
    optimizer: Any,
    opt_param_scheduler: Any,
    load_arg: str = "load",
    *options: Any,
    **named: Any,
) -> Any:
    """Weights of a Hugging Face folder, at iteration 0; else Megatron's own loading."""
    from megatron.core.utils import unwrap_model
    from megatron.training.checkpointing import checkpoint_exists
    from megatron.training.global_vars import get_args

    args = get_args()
    folder = folder_of(getattr(args, load_arg))
    pretrained = folder_of(getattr(args, "pretrained_checkpoint", None))
    if folder is None and pretrained is not None and not checkpoint_exists(args.load):
        folder = pretrained
    if folder is None:
        return original(ddp_model, optimizer, opt_param_scheduler, load_arg, *options, **named)

    from mindspeed_ms import hf

    loaded = hf.load(unwrap_model(ddp_model), folder, show=args.rank == 0)
    if optimizer is not None:
        optimizer.reload_model_params()
    if args.rank == 0:
        rate = loaded.read / max(loaded.seconds, 1e-9) / 1e9
        print(f"loaded {loaded.tensors} tensors of {folder} in {loaded.seconds:.1f} s ({rate:.2f} GB/s)")
    return 0, 0


@around(
    "megatron.training.checkpointing:save_checkpoint",
    reason="--save hf:DIR is no checkpoint of Megatron",
)
def save_checkpoint(
    original: Callable[..., Any], iteration: int, model: Any, *options: Any, **named: Any
) -> Any:
    """Weights as the Hugging Face folder DIR/iter_NNNNNNN; else Megatron's own saving."""
    from megatron.core.utils import unwrap_model
    from megatron.training.global_vars import get_args

    args = get_args()
    if not (args.save or "").startswith(PREFIX):
        if iteration == 0 and source_of(args) is not None:
            named["release"] = True  # Megatron loads no checkpoint of iteration 0 that is not called so
        return original(iteration, model, *options, **named)

    from mindspeed_ms import hf

    source = source_of(args)
    assert source is not None, "fill_arguments refuses a run without one"
    target = Path(args.save.removeprefix(PREFIX)) / f"iter_{iteration:07d}"
    size = hf.save(unwrap_model(model), source, target, show=args.rank == 0)
    if args.rank == 0:
        print(f"saved {size / 1e9:.2f} GB to {target}, weights without the optimizer's state")


@around(
    "megatron.core.models.gpt.gpt_model:GPTModel.__init__",
    reason="Megatron's builders leave out what a Hugging Face model says of its rotary embeddings",
)
def build(original: Callable[..., None], self: Any, *options: Any, **named: Any) -> None:
    """The model, with the scaling of rotary embeddings that its config.json asks for."""
    state = sys.modules.get("megatron.training.global_vars")
    args = getattr(state, "_GLOBAL_ARGS", None)
    if args is not None and source_of(args) is not None:
        named.setdefault("rope_scaling_factor", getattr(args, "rope_scaling_factor", 8.0))
        named.setdefault("seq_len_interpolation_factor", args.rotary_seq_len_interpolation_factor)
    original(self, *options, **named)


def source_of(args: argparse.Namespace) -> Path | None:
    """The Hugging Face folder that the model of this run comes from, if it comes from one."""
    return model_of(args.load) or model_of(getattr(args, "pretrained_checkpoint", None))


def fill_arguments(args: argparse.Namespace) -> None:
    """Set the flags of the Hugging Face model that ``--load`` or ``--pretrained-checkpoint`` names, if any.

    Raises ValueError if ``--save hf:DIR`` is given and neither names one.
    """
    folder = source_of(args)
    if folder is not None:
        from mindspeed_ms import hf

        hf.fill(args, folder)
    elif (args.save or "").startswith(PREFIX):
        raise ValueError(
            f"--save {args.save} takes config.json and the tokenizer from the folder that the model is of: "
            "name it by --load hf:DIR or --pretrained-checkpoint hf:DIR"
        )
