"""Rotary position embedding (Su et al. 2021) on any strided (sequence, batch, heads, channels) tensor."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch
from mindspeed_ms._native.kernels import ROPE_LAYOUTS as LAYOUTS
from mindspeed_ms.kernels.backend import dtype_code, native, pointer, version
from mindspeed_ms.kernels.operator import Gradient, Operator, cast, fake_like, gradients
from mindspeed_ms.routes import on_ascend, takes
from torch.utils.weak import WeakIdKeyDictionary

Tensor = torch.Tensor

#: What was made of a tensor, kept while it lives and is not written to: (version and arguments, result).
_tables: WeakIdKeyDictionary = WeakIdKeyDictionary()
_positions: WeakIdKeyDictionary = WeakIdKeyDictionary()


def rope(
    x: Tensor,
    freqs: Tensor,
    layout: str = "half",
    *,
    mscale: float = 1.0,
    positions: Tensor | None = None,
) -> Tensor:
    """Rotates the first freqs.shape[-1] channels of each head by the angles `freqs`; the others are copied.

    x: (sequence, batch, heads, channels) or (tokens, heads, channels), fp32, bf16 or fp16, any strides with
    adjacent channels; freqs: fp32 (sequence, 1 or batch, 1, rotary) (for 3-d x (tokens, 1, 1, rotary)),
    both halves given as Megatron's RotaryEmbedding does. layout: "half" pairs (i, i + rotary/2),
    "interleaved" pairs (2i, 2i+1), "to_half" takes interleaved pairs and returns them in halves (Megatron's
    multi_latent_attention). cos and sin are multiplied by `mscale` (YaRN) and, unlike in Megatron's unfused
    code, not rounded to x's dtype. `positions`, int64 (sequence,), say which row of freqs a token takes
    (:func:`packed_positions` for packed sequences), by default its own. The result is contiguous.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown rotary layout {layout!r}; use one of {sorted(LAYOUTS)}")
    if x.dim() == 3:
        return rope(x.unsqueeze(1), freqs, layout, mscale=mscale, positions=positions).squeeze(1)
    rotary = freqs.shape[-1]
    if x.dim() != 4 or rotary > x.shape[-1] or rotary % 2:
        raise ValueError(f"rope: x {tuple(x.shape)} cannot be rotated by freqs {tuple(freqs.shape)}")
    if (
        freqs.dim() != 4
        or (freqs.shape[0] < x.shape[0] and positions is None)
        or freqs.shape[1] not in (1, x.shape[1])
        or freqs.shape[2] != 1
    ):
        raise ValueError(
            f"rope: freqs {tuple(freqs.shape)} must be (sequence, 1 or batch, 1, rotary) "
            f"for x {tuple(x.shape)}"
        )
    if positions is not None and positions.shape != x.shape[:1]:
        raise ValueError(f"rope: positions {tuple(positions.shape)} do not fit x {tuple(x.shape)}")
    if positions is None and freqs.shape[0] != x.shape[0]:
        freqs = freqs[: x.shape[0]]
    # Ascend's operator wants tables in the dtype of x: cast here, they are cast once for all layers.
    narrow = on_ascend() and takes(x) and x.dtype != torch.float64
    tables = _cos_sin(freqs, mscale, x.dtype if narrow else torch.float32)
    cos, sin = (_rows(table, positions) for table in tables)
    return _ROPE(x, cos, sin, layout)


def _check(x: Tensor, cos: Tensor, sin: Tensor, layout: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"unknown rotary layout {layout!r}; use one of {sorted(LAYOUTS)}")
    fits = x.dim() == 4 and cos.dim() == 4 and cos.shape == sin.shape and cos.shape[2] == 1
    fits = fits and cos.shape[0] >= x.shape[0] and cos.shape[1] in (1, x.shape[1])
    if not fits or cos.shape[3] > x.shape[3] or cos.shape[3] % 2:
        raise ValueError(
            f"rope: cos {tuple(cos.shape)} and sin {tuple(sin.shape)} must be (sequence, 1 or batch, 1, "
            f"rotary) for x {tuple(x.shape)}"
        )


def rope_composite(x: Tensor, freqs: Tensor, layout: str = "half", *, mscale: float = 1.0) -> Tensor:
    """The reference in torch operators, for x of 4 dimensions."""
    return _composite(x, torch.cos(freqs) * mscale, torch.sin(freqs) * mscale, layout)


def packed_positions(cu_seqlens: Tensor, tokens: int, ranks: int = 1, rank: int = 0) -> Tensor:
    """Position of each token within its own sequence, int64 (tokens,) on cu_seqlens' device.

    cu_seqlens: int (n + 1,), sums of the lengths of whole sequences. Of several context-parallel `ranks` this
    one holds chunks `rank` and 2 * ranks - 1 - rank of the 2 * ranks chunks of every sequence, one after the
    other (Transformer Engine's order). Tokens after the last sequence are padding and have position 0.
    ValueError for sequences that do not divide, or are more than the tokens.
    """
    key = (version(cu_seqlens), tokens, ranks, rank)
    known = _positions.get(cu_seqlens)
    if known is not None and known[0] == key:
        return known[1]
    sums = cu_seqlens.tolist()
    places = torch.zeros(tokens, dtype=torch.int64)
    at = 0
    for begin, end in itertools.pairwise(sums):
        if ranks > 1 and (end - begin) % (2 * ranks):
            raise ValueError(
                f"packed sequences on {ranks} ranks need lengths divisible by {2 * ranks}: {sums}"
            )
        chunk = (end - begin) // (2 * ranks) if ranks > 1 else end - begin
        for number in (rank, 2 * ranks - 1 - rank) if ranks > 1 else (0,):
            if at + chunk > tokens:
                raise ValueError(f"packed sequences {sums} on {ranks} ranks are more than {tokens} tokens")
            places[at : at + chunk] = torch.arange(number * chunk, (number + 1) * chunk)
            at += chunk
    places = places.to(cu_seqlens.device)
    if key[0] is not None:
        _positions[cu_seqlens] = (key, places)
    return places


def latent_query(q: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    """Query of multi-latent attention: its last cos.shape[-1] channels, interleaved, are rotated into halves.

    q: (sequence, batch, heads, channels), or (tokens, heads, channels) of packed sequences with `positions`
    as in :func:`rope`; cos, sin: (sequence or more, 1, 1, rotary), any dtype; they are data, no gradient goes
    to them. The result is a new tensor.
    """
    if q.dim() == 3:
        return latent_query(q.unsqueeze(1), cos, sin, positions).squeeze(1)
    cos, sin = _rows(cos, positions), _rows(sin, positions)
    plain, position = q.split((q.shape[-1] - cos.shape[-1], cos.shape[-1]), dim=-1)
    return torch.cat((plain, turn(position, cos, sin, "to_half")), dim=-1)


def latent_key_value(
    kv: Tensor,
    position: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_channels: int,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Key and value of multi-latent attention; the rotated ``position`` is the end of each head's key.

    kv: (sequence, batch, heads, key_channels + value channels); position: (sequence, batch, 1, rotary);
    packed kv and position have no batch; cos, sin and positions as in :func:`latent_query`. Returns
    (..., key_channels + rotary) and (..., value channels).
    """
    if kv.dim() == 3:
        both = latent_key_value(kv.unsqueeze(1), position.unsqueeze(1), cos, sin, key_channels, positions)
        return both[0].squeeze(1), both[1].squeeze(1)
    cos, sin = _rows(cos, positions), _rows(sin, positions)
    key, value = kv.split((key_channels, kv.shape[-1] - key_channels), dim=-1)
    turned = turn(position, cos, sin, "to_half").expand(*key.shape[:-1], -1)
    return torch.cat((key, turned), dim=-1), value.contiguous()


def _rows(table: Tensor, positions: Tensor | None) -> Tensor:
    return table if positions is None else table.index_select(0, positions.to(table.device))


def turn(x: Tensor, cos: Tensor, sin: Tensor, layout: str = "half") -> Tensor:
    """:func:`rope` by tables of cosines and sines instead of angles, without a gradient to them.

    x: (sequence, batch, heads, channels); cos, sin: (sequence or more, 1 or batch, 1, rotary), both halves.
    """
    return _ROPE(x, cos[: x.shape[0]].detach(), sin[: x.shape[0]].detach(), layout)


def _cos_sin(freqs: Tensor, mscale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tables of the angles, kept while `freqs` lives: every layer turns by the same ones.

    They are made in fp32 at least, and kept in `dtype`; those of float64 angles stay as they are.
    """
    key = (version(freqs), mscale, dtype)
    known = _tables.get(freqs)
    if known is not None and known[0] == key:
        return known[1]
    with torch.no_grad():
        wide = freqs.detach() if freqs.dtype == torch.float64 else freqs.detach().float()
        kept = torch.float64 if freqs.dtype == torch.float64 else dtype
        cos, sin = (torch.cos(wide) * mscale, torch.sin(wide) * mscale)
        pair = cos.to(kept).contiguous(), sin.to(kept).contiguous()
    if key[0] is not None:
        _tables[freqs] = (key, pair)
    return pair


# ---- composite


def _composite(x: Tensor, cos: Tensor, sin: Tensor, layout: str) -> Tensor:
    turned, passed = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    wide = turned if turned.dtype == torch.float64 else turned.float()
    if layout == "interleaved":
        other = torch.stack((-wide[..., 1::2], wide[..., ::2]), dim=-1).flatten(-2)
    else:
        if layout == "to_half":
            wide = torch.cat((wide[..., ::2], wide[..., 1::2]), dim=-1)
        low, high = wide.chunk(2, dim=-1)
        other = torch.cat((-high, low), dim=-1)
    return torch.cat(((wide * cos + other * sin).to(x.dtype), passed), dim=-1)


def _composite_backward(dy: Tensor, cos: Tensor, sin: Tensor, layout: str) -> Tensor:
    # It is linear: where its gradient is taken does not matter.
    return gradients(lambda x: _composite(x, cos, sin, layout), (dy,), (dy,))[0]


# ---- csrc


def _csrc(x: Tensor, cos: Tensor, sin: Tensor, layout: str, backward: bool = False) -> Tensor:
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        x = x.contiguous()
    cos, sin = cos.float().contiguous(), sin.float().contiguous()
    y = fake_like(x)
    if x.numel():
        sequence, batch, heads, channels = x.shape
        native().rope(
            layout=LAYOUTS[layout],
            backward=backward,
            x=pointer(x),
            y=pointer(y),
            cos=pointer(cos),
            sin=pointer(sin),
            sequence=sequence,
            batch=batch,
            heads=heads,
            channels=channels,
            rotary=cos.shape[-1],
            x_sequence=x.stride(0),
            x_batch=x.stride(1),
            x_head=x.stride(2),
            y_sequence=y.stride(0),
            y_batch=y.stride(1),
            y_head=y.stride(2),
            table_sequence=cos.stride(0),
            table_batch=cos.stride(1) if cos.shape[1] > 1 else 0,
            dtype=dtype_code(x),
        )
    return y


# ---- MindSpore: ops.rotary_position_embedding and its gradient

MODES = {"half": 0, "interleaved": 1, "to_half": 0}


def _mindspore(x: Any, cos: Any, sin: Any, layout: str) -> Any:
    from mindspore import ops

    def turn(part: Any) -> Any:
        if layout == "to_half":
            part = _pairs(part, (-1, 2))
        return ops.rotary_position_embedding(part, cast(cos, x.dtype), cast(sin, x.dtype), MODES[layout])

    return _of_rotary(x, cos.shape[-1], turn)


def _mindspore_backward(dy: Any, cos: Any, sin: Any, layout: str) -> Any:
    from mindspore.ops import auto_generate

    def turn(part: Any) -> Any:
        tables = cast(cos, dy.dtype), cast(sin, dy.dtype)
        part = auto_generate.rotary_position_embedding_grad_op(part, *tables, None, MODES[layout])[0]
        return _pairs(part, (2, -1)) if layout == "to_half" else part

    return _of_rotary(dy, cos.shape[-1], turn)


def _of_rotary(x: Any, rotary: int, turn: Any) -> Any:
    """`turn` on the first `rotary` channels."""
    from mindspore import mint

    rest = x.shape[-1] - rotary
    if not rest:
        return turn(x)
    return mint.cat((turn(mint.narrow(x, -1, 0, rotary)), mint.narrow(x, -1, rotary, rest)), -1)


def _pairs(x: Any, halves: tuple[int, int]) -> Any:
    """Channels (pair, 2) as (2, pair), or the other way round."""
    return x.reshape((*x.shape[:-1], *halves)).swapaxes(-1, -2).reshape(x.shape)


def _refusal(x: Tensor, cos: Tensor, sin: Tensor, layout: str) -> str | None:
    return None if cos.shape[1] == 1 else "the operator takes the same angles for the whole batch"


# ---- operators


def _save(ctx: Any, args: tuple[Any, ...], y: Tensor) -> None:
    ctx.save_for_backward(*args[1:3])
    ctx.layout = args[3]


def _gradient(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    return None if dy is None else _BACKWARD(dy, *ctx.saved_tensors, ctx.layout), None, None, None


_BACKWARD = Operator(
    "rope_backward(Tensor dy, Tensor cos, Tensor sin, str layout) -> Tensor",
    decides=("dy",),
    fake=lambda dy, *_: fake_like(dy),
    composite=_composite_backward,
    csrc=partial(_csrc, backward=True),
    mindspore=_mindspore_backward,
    refusal=_refusal,
)

_ROPE = Operator(
    "rope(Tensor x, Tensor cos, Tensor sin, str layout) -> Tensor",
    decides=("x",),
    fake=lambda x, *_: fake_like(x),
    composite=_composite,
    csrc=_csrc,
    mindspore=_mindspore,
    refusal=_refusal,
    check=_check,
    gradient=Gradient(_save, _gradient),
)
