"""Which bytes of a Hugging Face folder become which bytes of a rank's parameters: the plan, both ways.

The plan is made from config.json, the tables of ``families.py`` and the model as Megatron built it on this
rank; the folder's weights are not looked at. :func:`check` holds the two against each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from mindspeed_ms.hf.config import Config
from mindspeed_ms.hf.errors import WeightsError
from mindspeed_ms.hf.families import Family, family, sizes
from mindspeed_ms.hf.files import DTYPES, Folder, Stored, some
from mindspeed_ms.hf.layouts import Block, Rows, Rule, Sizes, Split


@dataclass(frozen=True)
class Place:
    """A rank's place in the groups that split weights: tensor parallel, the same for experts, and experts."""

    tp: int = 1
    tp_rank: int = 0
    etp: int = 1
    etp_rank: int = 0
    ep_rank: int = 0

    @classmethod
    def here(cls) -> Place:
        """This rank's, by Megatron's parallel state."""
        from megatron.core import parallel_state as state

        return cls(
            state.get_tensor_model_parallel_world_size(),
            state.get_tensor_model_parallel_rank(),
            state.get_expert_tensor_parallel_world_size(),
            state.get_expert_tensor_parallel_rank(),
            state.get_expert_model_parallel_rank(),
        )


class Slot(NamedTuple):
    """A weight of the model on this rank.

    ``name`` is that of ``families.py``; ``layer`` and ``expert`` count through the whole model. ``tensor`` is
    a view of the parameter with outputs first. ``where`` is the parameter's own name.
    """

    name: str
    layer: int | None
    expert: int | None
    tensor: torch.Tensor
    where: str
    mtp: bool = False
    first: bool = True
    """Whether this is not the second copy of a weight that stages of a pipeline share."""


class Copy(NamedTuple):
    """``target`` holds ``source`` of the stored tensor ``key`` of shape ``shape``; zeros if ``key`` is empty.

    ``target`` is transposed already where the stored matrix is. ``owned``: whether this rank is among those
    that write it when weights go out, which replicas share. ``where`` is the parameter's name.
    """

    key: str
    shape: tuple[int, ...]
    source: tuple[slice, ...]
    target: torch.Tensor
    where: str
    owned: bool
    expert: bool


_FUSED = (
    ("self_attention.linear_qkv.layer_norm_", "input_layernorm."),
    ("self_attention.linear_q_up_proj.layer_norm_", "self_attention.q_layernorm."),
    ("self_attention.linear_kv_up_proj.layer_norm_", "self_attention.kv_layernorm."),
    ("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."),
)
"""Norms inside Transformer Engine's fused layers, and their names in Megatron's own."""

_LAYER = re.compile(r"(?P<stack>decoder|mtp)\.layers\.(?P<index>\d+)\.(?P<rest>.+)")
_INNER = ("transformer_layer.", "mtp_model_layer.")  # the decoder layer inside one of multi-token prediction
_EXPERT = re.compile(
    r"mlp\.experts\.(?:local_experts\.(?P<of>\d+)\.)?(?P<rest>linear_fc[12]\.[a-z]+)(?P<nth>\d*)"
)
_GROUPED = {"mlp.experts.weight1": "linear_fc1", "mlp.experts.weight2": "linear_fc2"}


def _tensors(chunk: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, and the buffers that are weights."""
    yield from chunk.named_parameters()
    yield from ((name, b) for name, b in chunk.named_buffers() if name.endswith("router.expert_bias"))


def slots(chunk: torch.nn.Module, place: Place) -> Iterator[Slot]:
    """The weights of a chunk of a model, a GPTModel without its wrappers."""
    model: Any = chunk
    for where, parameter in _tensors(chunk):
        tensor = parameter.detach()
        match = _LAYER.fullmatch(where)
        if match is None:
            shared = model.share_embeddings_and_output_weights and where == "output_layer.weight"
            again = where.startswith("embedding.") and not model.pre_process
            yield Slot(where, None, None, tensor, where, first=not (shared or again))
            continue
        stack = getattr(model, match["stack"])
        owner = stack.layers[int(match["index"])]
        layer, name, mtp = owner.layer_number - 1, match["rest"], match["stack"] == "mtp"
        for inner in _INNER:
            if mtp and name.startswith(inner):
                name, owner = name.removeprefix(inner), getattr(owner, inner[:-1])
        for fused, own in _FUSED:
            if name.startswith(fused):
                name = own + name.removeprefix(fused)
        if name in _GROUPED:
            experts = owner.mlp.experts.num_local_experts
            inputs_first = tensor.view(experts, *_matrix(name, tensor, experts)).transpose(1, 2)
            for nth, matrix in enumerate(inputs_first):
                of = place.ep_rank * experts + nth
                yield Slot(f"mlp.experts.{_GROUPED[name]}.weight", layer, of, matrix, where, mtp)
        elif expert := _EXPERT.fullmatch(name):
            of = place.ep_rank * owner.mlp.experts.num_local_experts + int(expert["of"] or expert["nth"])
            yield Slot(f"mlp.experts.{expert['rest']}", layer, of, tensor, where, mtp)
        else:
            yield Slot(name, layer, None, tensor, where, mtp)


def _matrix(name: str, tensor: torch.Tensor, experts: int) -> tuple[int, int]:
    """Inputs and outputs of one expert in a parameter that holds all of them."""
    if name.endswith("1"):
        return tensor.shape[0], tensor.shape[1] // experts
    return tensor.shape[0] // experts, tensor.shape[1]


def _rule(slot: Slot, of: Family, size: Sizes, config: Config) -> tuple[Rule, str]:
    """The rule for a weight, and what its keys begin with."""
    prefix, rule = "", None
    if slot.layer is None:
        rule = of.model.get(slot.name)
        if slot.name == "output_layer.weight" and config.tied:
            rule = of.model["embedding.word_embeddings.weight"]
    else:
        rule = of.layers.get(slot.name) or (of.mtp or {}).get(slot.name if slot.mtp else "")
        prefix = of.layer.format(slot.layer + size.layers if slot.mtp else slot.layer)
    if rule is None or (slot.mtp and of.mtp is None):
        raise WeightsError(
            f"{slot.where} has no counterpart in a {config.kind} model: a flag asks for what it does not have"
        )
    return rule, prefix


def _share(block: Block, first: int, last: int) -> Iterator[tuple[Rows, int]]:
    """Rows ``first`` to ``last`` of a block, with where each begins among them; neighbours are joined."""
    at = 0
    joined: list[tuple[Rows, int]] = []
    for piece in block:
        low, high = max(first, at), min(last, at + piece.height)
        if low < high:
            taken = piece._replace(start=piece.start + low - at, height=high - low)
            before, begins = joined[-1] if joined else (None, 0)
            if before is not None and before.key == taken.key and before.start + before.height == taken.start:
                joined[-1] = before._replace(height=before.height + taken.height), begins
            else:
                joined.append((taken, low - first))
        at += piece.height
    yield from joined


def _copies(slot: Slot, rule: Rule, prefix: str, size: Sizes, place: Place) -> Iterator[Copy]:
    is_expert = slot.expert is not None
    ranks, rank = (place.etp, place.etp_rank) if is_expert else (place.tp, place.tp_rank)
    height = slot.tensor.shape[0] * (ranks if rule.split is Split.ROWS else 1)
    owned = slot.first and (rule.split is not Split.WHOLE or rank == 0)
    begins = 0
    for block in rule.blocks(size, height):
        whole = sum(piece.height for piece in block)
        parts = ranks if rule.split is Split.ROWS else 1
        if whole % parts:
            raise WeightsError(f"{slot.where} has {whole} rows, which {parts} ranks cannot share equally")
        first = rank * (whole // parts) if parts > 1 else 0
        for piece, at in _share(block, first, first + whole // parts):
            target = slot.tensor[begins + at : begins + at + piece.height]
            shape: tuple[int, ...] = (piece.total,)
            source: tuple[slice, ...] = (slice(piece.start, piece.start + piece.height),)
            if slot.tensor.dim() == 2:
                width = slot.tensor.shape[1]
                parts_across = ranks if rule.split is Split.COLUMNS else 1
                left = rank * width if parts_across > 1 else 0
                shape, source = (piece.total, width * parts_across), (*source, slice(left, left + width))
                if rule.transposed:
                    shape, source, target = shape[::-1], source[::-1], target.t()
            key = prefix + piece.key.format(slot.expert) if piece.key else ""
            yield Copy(key, shape, source, target, slot.where, owned, is_expert)
        begins += whole // parts
    if begins != slot.tensor.shape[0]:
        raise WeightsError(
            f"{slot.where} has {slot.tensor.shape[0]} rows where config.json makes {begins}: check the flags"
        )


def plan(chunks: Sequence[torch.nn.Module], config: Config, place: Place | None = None) -> list[Copy]:
    """The copies between a folder with this ``config`` and the model's chunks on this rank.

    ``chunks``: GPTModels without wrappers; ``place``: by default from Megatron's parallel state. Raises
    WeightsError for a parameter that the architecture does not have, UnsupportedModelError for an
    architecture that is not known.
    """
    place = place or Place.here()
    of, size = family(config), sizes(config)
    return [
        copy
        for chunk in chunks
        for slot in slots(chunk, place)
        for copy in _copies(slot, *_rule(slot, of, size, config), size, place)
    ]


def check(copies: Iterable[Copy], stored: Mapping[str, Stored], folder: Folder) -> None:
    """Hold the plan against the folder. Raises WeightsError for keys that are missing or of another shape."""
    wanted = {copy.key: copy for copy in copies if copy.key}
    if missing := sorted(wanted.keys() - stored.keys()):
        raise WeightsError(f"{folder.path} lacks {some(missing)}, which {wanted[missing[0]].where} needs")
    for key, copy in wanted.items():
        if stored[key].dtype not in DTYPES:
            raise WeightsError(
                f"{key} of {folder.path} is stored as {stored[key].dtype}, no dtype of weights here: "
                f"save it as one of {', '.join(DTYPES)}"
            )
        if stored[key].shape != copy.shape:
            raise WeightsError(
                f"{key} of {folder.path} has shape {list(stored[key].shape)}, and {copy.where} needs "
                f"{list(copy.shape)}: config.json and the weights do not belong together"
            )


def twins(config: Config, keys: Iterable[str]) -> dict[str, str]:
    """Of ``keys`` those that repeat another tensor -> that tensor's key.

    An output matrix beside tied embeddings, and the matrices that layers of multi-token prediction share.
    """
    of, size = family(config), sizes(config)
    embedding, output = (
        of.model[name].blocks(size, 0)[0][0].key
        for name in ("embedding.word_embeddings.weight", "output_layer.weight")
    )
    tied = config.tied
    same = {output: embedding} if tied else {}
    for layer in range(size.layers, size.layers + config.get("num_nextn_predict_layers", 0)):
        prefix = of.layer.format(layer)
        same[f"{prefix}embed_tokens.weight"] = embedding
        same[f"{prefix}shared_head.head.weight"] = embedding if tied else output
    return {key: same[key] for key in keys if key in same}


def unused(config: Config, keys: Iterable[str], used: Iterable[str]) -> set[str]:
    """Of ``keys`` those that hold nothing a parameter needs, when ``used`` are what parameters take.

    Buffers that are computed, an output matrix beside tied embeddings, layers of multi-token prediction that
    this model is built without, and the second copies of matrices in those it has.
    """
    keys = set(keys)
    of, size = family(config), sizes(config)
    repeated = twins(config, keys).keys()
    patterns = list(of.unused)
    extra = range(size.layers, size.layers + config.get("num_nextn_predict_layers", 0))
    taken = tuple(used)
    for prefix in map(of.layer.format, extra):
        if not any(key.startswith(prefix) for key in taken):
            patterns.append(re.escape(prefix) + ".*")
    compiled = [re.compile(pattern) for pattern in patterns]
    return {key for key in keys if key in repeated or any(pattern.fullmatch(key) for pattern in compiled)}
