"""A rank of hf_models.py: a stock Megatron-LM checkout loads a Hugging Face folder, and is held against it.

The command line is Megatron's, with ``--load hf:DIR``. DIR/reference.pt and DIR/gradients are transformers'.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, os.environ["MEGATRON_LM_PATH"])


def relative(measured: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, over the largest value expected."""
    measured, expected = measured.detach().cpu().double(), expected.double()
    return float((measured - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def main() -> None:
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.utils import unwrap_model
    from megatron.training import arguments, get_args
    from megatron.training.initialize import initialize_megatron
    from megatron.training.training import setup_model_and_optimizer
    from mindspeed_ms import hf

    if hasattr(arguments, "parse_and_validate_args"):  # from 0.18 on it is the script that calls it
        arguments.parse_and_validate_args()
    initialize_megatron()
    args = get_args()
    folder = Path(args.load.removeprefix("hf:"))
    reference = torch.load(folder / "reference.pt")
    tokens = reference["tokens"].cuda()
    chunks, _, _ = setup_model_and_optimizer(model_provider_func=provider(), model_type=model_type())
    found: dict[str, Any] = {}
    saved = Path(os.environ["HF_SAVED"])
    hf.save(unwrap_model(chunks), folder, saved)

    def compare(output: torch.Tensor, non_loss_data: bool = False) -> Any:
        logits = tensor_parallel.gather_from_tensor_model_parallel_region(output)
        logits = logits[..., : reference["logits"].shape[-1]]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        found["logits"] = relative(logits, reference["logits"])
        found["loss"] = relative(loss, reference["loss"])
        return loss, {}

    def step(_: Any, model: Any) -> Any:
        positions = torch.arange(args.seq_length, device=tokens.device).expand(len(tokens), -1)
        mask = torch.ones(args.seq_length, args.seq_length, device=tokens.device).triu(1).bool()[None, None]
        return model(tokens[:, :-1], positions, mask), compare

    for chunk in chunks:
        chunk.zero_grad_buffer()
    unwrap_model(chunks)[0].config.finalize_model_grads_func = finalize_model_grads
    get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=[None] * len(chunks) if len(chunks) > 1 else None,
        model=chunks,
        num_microbatches=args.pipeline_model_parallel_size if len(chunks) > 1 else 1,
        seq_length=args.seq_length,
        micro_batch_size=args.micro_batch_size,
        forward_only=False,
    )
    gradients = [(p, p.main_grad.clone()) for c in chunks for p in c.parameters()]
    names = [n for c in unwrap_model(chunks) for n, _ in c.named_parameters()]
    hf.load(unwrap_model(chunks), folder / "gradients")
    worst = {
        name: relative(measured, parameter.detach().cpu())
        for name, (parameter, measured) in zip(names, gradients, strict=True)
        if parameter.detach().abs().max() > 0
    }
    if worst:
        found["gradient"], found["of"] = max((value, name) for name, value in worst.items())
    if dist.get_rank() == 0:
        found["differ"] = different(saved, folder)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    if dist.get_rank() == 0:
        said = {key: max(f[key] for f in everyone if key in f) for key in ("logits", "loss", "gradient")}
        said["of"] = next(f["of"] for f in everyone if f.get("gradient") == said["gradient"])
        said["differ"] = found["differ"]
        print("RESULT", json.dumps(said), flush=True)
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def different(saved: Path, source: Path) -> list[str]:
    """Tensors and files that are not bit for bit the same in two folders."""
    from safetensors.torch import load_file

    one, other = (
        {k: v for f in p.glob("*.safetensors") for k, v in load_file(f).items()} for p in (saved, source)
    )
    wrong = sorted(one.keys() ^ other.keys())
    wrong += [k for k in one if k in other and (one[k].dtype != other[k].dtype or not one[k].equal(other[k]))]
    return wrong + [p.name for p in source.glob("*.json") if p.read_bytes() != (saved / p.name).read_bytes()]


def provider() -> Any:
    from gpt_builders import gpt_builder
    from model_provider import model_provider

    return partial(model_provider, gpt_builder)


def model_type() -> Any:
    from megatron.core.enums import ModelType

    return ModelType.encoder_or_decoder


if __name__ == "__main__":
    main()
