"""Checkpoints as Megatron writes them on CUDA with Transformer Engine, made of plain torch's, and compared.

    python -m tests.reference.plain_torch tests/distributed/te_checkpoint.py \\
        CHECKOUT make torch|torch_dist SOURCE TARGET --te 1.13|2.2|2.9
    python -m tests.reference.plain_torch tests/distributed/te_checkpoint.py \\
        CHECKOUT compare torch|torch_dist SOURCE TARGET

SOURCE of "make" is a folder saved by stock pretrain_gpt.py on plain torch with ``--transformer-impl local``.
Nothing of mindspeed_ms is imported. What follows here is read off Transformer Engine's sources
(transformer_engine/pytorch at the tags v1.13, v2.2, v2.9; the files are named where they are used).
"""

from __future__ import annotations

import argparse
import io
import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

FUSED = {"input_layernorm": "self_attention.linear_qkv", "pre_mlp_layernorm": "mlp.linear_fc1"}
"""Norms that are part of the linear layer behind them (module/layernorm_linear.py)."""
LINEAR = ("self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2")
ATTENTION = "self_attention.core_attention"
FINAL_NORM = "decoder.final_layernorm"
CUDA_STATE = torch.frombuffer(bytearray(struct.pack("<Qq", 1234, 8)), dtype=torch.uint8)
"""State of a CUDA generator: Philox seed (uint64) and offset (int64), on the CPU."""
TORCH_ADAM = (
    *("amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused"),
    "decoupled_weight_decay",
)
"""Entries of a parameter group that torch's Adam has and FusedAdam has not (optimizers/fused_adam.py)."""


def _file_of_none() -> io.BytesIO:
    file = io.BytesIO()
    torch.save(None, file)
    return file


def _bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


EXTRA_STATE: dict[str, tuple[Callable[[], Any], Callable[[], Any] | None]] = {
    "1.13": (_file_of_none, None),
    "2.2": (lambda: _bytes(pickle.dumps(None)), lambda: _bytes(pickle.dumps({}))),
    "2.9": (lambda: _bytes(b""), lambda: _bytes(b"")),
}
"""Release -> ``_extra_state`` without fp8 of linear layers and attention (module/base.py), and of norms
(ops/op.py; in 1.x they had none, module/layernorm.py)."""


def names(keys: Iterator[str] | list[str], norms: bool) -> list[str]:
    """Entries of the model in Transformer Engine's order, of the entries that the local spec has."""
    keys = [key for key in keys if not key.endswith("_extra_state")]
    layers = sorted({int(key.split(".")[2]) for key in keys if key.startswith("decoder.layers.")})
    found = [key for key in keys if key.startswith("embedding.")]
    for layer in (f"decoder.layers.{index}." for index in layers):
        found.append(f"{layer}{ATTENTION}._extra_state")
        for module in LINEAR:
            if module in FUSED.values():
                found += [f"{layer}{module}.layer_norm_weight", f"{layer}{module}.layer_norm_bias"]
            found += [f"{layer}{module}.{kind}" for kind in ("weight", "bias", "_extra_state")]
    found += [f"{FINAL_NORM}.weight", f"{FINAL_NORM}.bias"]
    return found + ([f"{FINAL_NORM}._extra_state"] if norms else []) + ["output_layer._extra_state"]


def local(name: str) -> str:
    """Name under the local spec of a parameter."""
    for norm, linear in FUSED.items():
        name = name.replace(f"{linear}.layer_norm_", f"{norm}.")
    return name


def te_model(model: dict[str, Any], release: str) -> dict[str, Any]:
    """The entry "model" of the legacy format."""
    linear, norm = EXTRA_STATE[release]
    made: dict[str, Any] = OrderedDict()
    for name in names(list(model), norm is not None):
        if not name.endswith("_extra_state"):
            made[name] = model[local(name)]
        elif name.startswith("output_layer"):  # Megatron's own layer
            made[name] = None
        else:
            made[name] = norm() if norm and name.startswith(FINAL_NORM) else linear()
    return made


def te_group(group: dict[str, Any], step: int) -> dict[str, Any]:
    """A parameter group of torch's AdamW as one of FusedAdam, which counts its steps there."""
    kept = {key: value for key, value in group.items() if key not in TORCH_ADAM}
    return {**kept, "bias_correction": True, "step": step}


def te_optimizer(optimizer: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """The entry "optimizer" of the legacy format: parameters are numbered by group in the model's order."""

    def in_group(group: dict[str, Any], ordered: list[str]) -> list[str]:
        decays = group["wd_mult"] == 1.0
        return [n for n in ordered if (n.endswith("bias") or model[local(n)].dim() == 1) != decays]

    ordered = [name for name in model if not name.endswith("_extra_state")]
    fused = [name for name in names(ordered, False) if not name.endswith("_extra_state")]
    state, groups = {}, []
    for group in optimizer["param_groups"]:
        saved = dict(zip(in_group(group, ordered), group["params"], strict=True))
        numbers = range(len(state), len(state) + len(saved))
        for number, name in zip(numbers, in_group(group, fused), strict=True):
            moments = optimizer["state"][saved[local(name)]]
            step = int(moments["step"])
            state[number] = {key: moments[key] for key in ("exp_avg", "exp_avg_sq")}
        groups.append({**te_group(group, step), "params": list(numbers)})
    return {"state": state, "param_groups": groups}


def of_cuda(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Random states with those of CUDA's generators in place of the CPU's."""
    trackers = dict.fromkeys(states[0]["rng_tracker_states"], CUDA_STATE)
    return [{**state, "cuda_rng_state": CUDA_STATE, "rng_tracker_states": trackers} for state in states]


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors below ``value``."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def make_legacy(source: Path, target: Path, release: str) -> None:
    """The legacy format: one file, whose weights and moments carry the tag cuda:0."""
    file = next(source.glob("iter_*/mp_rank_00/model_optim_rng.pt"))
    saved = torch.load(file, map_location="cpu", weights_only=False)
    optimizer = te_optimizer(saved["optimizer"], saved["model"])
    model = te_model(saved["model"], release)
    saved |= {"model": model, "optimizer": optimizer, "rng_state": of_cuda(saved["rng_state"])}
    weights = [value for name, value in model.items() if not name.endswith("_extra_state")]
    on_cuda = {t.untyped_storage().data_ptr() for t in tensors([weights, optimizer["state"]])}
    torch.serialization.register_package(
        0, lambda storage: "cuda:0" if storage.data_ptr() in on_cuda else None, lambda *_: None
    )
    path = target / file.relative_to(source)
    path.parent.mkdir(parents=True)
    torch.save(saved, path)


def read_sharded(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Entries as described by the checkpoint, what they hold, and what is common to all ranks."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.serialization import load_sharded_metadata

    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    described = load_sharded_metadata(str(folder))
    common = dist_checkpointing.load_common_state_dict(str(folder))
    loaded = dist_checkpointing.load(dict(described), str(folder), validate_access_integrity=False)
    return described, {key: loaded[key] for key in described}, common


def make_sharded(source: Path, target: Path, release: str) -> None:
    """The format torch_dist. Weights have the same names under both specs; extra states are objects."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor

    folder = next(source.glob("iter_*"))
    described, values, common = read_sharded(folder)
    made: dict[str, Any] = {}
    layers = 0
    for number, (key, entry) in enumerate(described.items()):
        if isinstance(entry, ShardedTensor):
            made[f"tensor {number}"] = ShardedTensor.from_rank_offsets(entry.key, values[key])
        elif entry.key.endswith("_extra_state"):
            layers = max(layers, *entry.global_shape)
        else:
            value = of_cuda(values[key]) if entry.key == "rng_state" else values[key]
            where = (entry.global_shape, entry.global_offset)
            made[f"object {number}"] = ShardedObject(entry.key, value, *where)
    linear, norm = EXTRA_STATE[release]
    for module in LINEAR:
        for layer in range(layers):
            key = f"decoder.layers.{module}._extra_state"
            made[f"{key} {layer}"] = ShardedObject(key, linear(), (layers,), (layer,))
    if norm:
        key = f"{FINAL_NORM}._extra_state"
        made[key] = ShardedObject(key, norm(), (1,), (0,))
    optimizer = common["optimizer"]
    step = int(optimizer.pop("state")["common_step"])  # the rest of it is sharded
    optimizer["param_groups"] = [te_group(group, step) for group in optimizer["param_groups"]]
    (target / folder.name).mkdir(parents=True)
    dist_checkpointing.save({**common, **made}, str(target / folder.name))


def read(kind: str, folder: Path) -> Any:
    """All that a checkpoint holds, but the flags and where random numbers stand."""
    if kind == "torch":
        file = next(folder.glob("iter_*/mp_rank_00/model_optim_rng.pt"))
        saved = torch.load(file, map_location="cpu", weights_only=False)
    else:
        _, values, saved = read_sharded(next(folder.glob("iter_*")))
        saved |= {key: value for key, value in values.items() if not key.startswith("rng_state")}
    return {key: value for key, value in saved.items() if key not in ("args", "rng_state")}


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where keys, their order in a model, kinds, shapes, dtypes, devices or values differ."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
            yield f"{where}: {one.shape} {one.dtype} {one.device}, {other.shape} {other.dtype} {other.device}"
        elif not torch.allclose(one.double(), other.double(), rtol=1e-3, atol=1e-6):
            yield f"{where}: values differ by {(one.double() - other.double()).abs().max():.1e}"
    elif isinstance(one, dict) and isinstance(other, dict):
        if (list(one) != list(other)) if where.endswith(".model") else (set(one) != set(other)):
            yield f"{where}: {sorted(set(one) ^ set(other), key=str) or 'another order'}"
        for key in one.keys() & other.keys():
            yield from differences(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{where}[{index}]")
    elif type(one) is not type(other) or one != other:
        yield f"{where}: {one!r}, {other!r}"


def main() -> None:
    """Entry point; "compare" prints a line per difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkout", help="a checkout of Megatron-LM")
    parser.add_argument("action", choices=("make", "compare"))
    parser.add_argument("kind", choices=("torch", "torch_dist"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--te", choices=EXTRA_STATE)
    options = parser.parse_args()
    sys.path.insert(0, options.checkout)
    if options.action == "compare":
        print(*differences(read(options.kind, options.source), read(options.kind, options.target)), sep="\n")
        return
    make = make_legacy if options.kind == "torch" else make_sharded
    make(options.source, options.target, options.te)
    tracker = "latest_checkpointed_iteration.txt"
    (options.target / tracker).write_text((options.source / tracker).read_text())


if __name__ == "__main__":
    main()
