"""Optimizer steps and multi-tensor operations over lists of tensors; a flat buffer is a list of one."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from mindspeed_ms.comm.names import group_named
from mindspeed_ms.kernels.backend import DTYPE_CODES, native
from mindspeed_ms.kernels.operator import Operator, cast, fake_like
from mindspeed_ms.routes import on_ascend

Tensor = torch.Tensor
Tensors = Sequence[torch.Tensor]


def adam_step(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = True,
    bias_correction: bool = True,
    maximize: bool = False,
    grad_scale: float = 1.0,
    copies: Tensors = (),
) -> None:
    """One in-place step of AdamW (`decoupled`) or Adam with L2 (torch.optim.AdamW / Adam, apex FusedAdam).

    params, exp_avgs, exp_avg_sqs: fp32 (others run the composite, which computes 16-bit params in fp32);
    grads: fp32, bf16 or fp16, multiplied by grad_scale; copies (bf16 or fp16 model weights beside fp32
    masters) receive the new
    parameters. The four or five tensors of one parameter have one shape and layout. `step` counts from 1.
    """
    if step < 1:
        raise ValueError(f"adam_step: step counts from 1, got {step}")
    lists = [list(column) for column in (params, grads, exp_avgs, exp_avg_sqs, copies)]
    if any(lists):
        scalars = (lr, *betas, eps, weight_decay, decoupled, bias_correction, maximize, grad_scale)
        _ADAM(*lists, step, *scalars)


def sgd_step(
    params: Tensors,
    grads: Tensors,
    momentum_buffers: Tensors = (),
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    first: bool = False,
    maximize: bool = False,
    grad_scale: float = 1.0,
    copies: Tensors = (),
) -> None:
    """One in-place step of SGD with momentum (torch.optim.SGD); tensors as in `adam_step`.

    `first` sets the momentum buffers to the gradient, as torch does when it creates them.
    """
    columns = (params, grads, momentum_buffers if momentum else (), copies)
    lists = [list(column) for column in columns]
    if any(lists):
        _SGD(*lists, lr, momentum, dampening, weight_decay, nesterov, first, maximize, grad_scale)


def multi_scale(
    inputs: Tensors, scale: float, outputs: Tensors = (), *, want_norms: bool = False
) -> tuple[bool, list[float]]:
    """One pass over `inputs`: outputs = inputs * scale, whether any input is NaN or infinite, and norms.

    `outputs` may be `inputs`, other tensors of the same sizes (any native dtype), or empty to write
    nothing. Returns (found_inf, l2 norm of input * scale per tensor, empty unless want_norms); this is
    multi_tensor_scale, multi_tensor_unscale_l2norm and found-inf of apex / Transformer Engine in one.
    """
    if not len(inputs) and not len(outputs):
        return False, []
    found, norms = _scaled(inputs, scale, outputs, want_norms, True)
    return bool(found), norms.tolist() if want_norms else []


def scale_into(outputs: Tensors, inputs: Tensors, scale: float) -> None:
    """outputs = inputs * scale, as :func:`multi_scale` writes them, without a look at the numbers."""
    if len(inputs) or len(outputs):
        _scaled(inputs, scale, outputs, False, False)


def _scaled(inputs: Tensors, scale: float, outputs: Tensors, want_norms: bool, want_found: bool) -> Any:
    ins, outs = list(inputs), list(outputs)
    if outs and all(x is y for x, y in zip(ins, outs, strict=True)):
        return _SCALE_IN_PLACE(ins, scale, want_norms, want_found)
    return _SCALE(ins, outs, scale, want_norms, want_found)


def l2_norm(tensors: Tensors) -> float:
    """Euclidean norm of all elements together (multi_tensor_l2norm); 0 for an empty list."""
    return norm_of(tensors).item() if tensors else 0.0


def norm_of(tensors: Tensors) -> Tensor:
    """:func:`l2_norm` of at least one tensor as a tensor without dimensions, which nobody waits for."""
    return _L2_NORM(list(tensors))


def clip_by_norm_(grads: Tensors, max_norm: float, total_norm: float) -> None:
    """Multiplies grads in place by max_norm / (total_norm + 1e-6) when that is below 1 (Megatron's clip)."""
    coefficient = max_norm / (total_norm + 1e-6)
    if coefficient < 1.0:
        scale_into(grads, grads, coefficient)


#: Coefficients of the quintic Newton-Schulz iteration (Jordan et al. 2024, Muon).
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),)


def newton_schulz(
    matrix: Tensor,
    steps: int = 5,
    coefficients: Sequence[tuple[float, float, float]] = NEWTON_SCHULZ,
    *,
    eps: float = 1e-7,
    dtype: torch.dtype = torch.bfloat16,
    split: tuple[int, dist.ProcessGroup] | None = None,
) -> Tensor:
    """Muon's approximate orthogonalisation of `matrix` (..., rows, cols) (Jordan et al. 2024).

    Runs X <- a X + (b A + c A A) X, A = X X^T, on the normalised matrix in `dtype`, on the smaller side;
    the result has matrix's dtype. Steps take the tuples (a, b, c) of `coefficients` in turn. Three matrix
    products a step, sums fused into them. `split` (dimension, group): every rank of the group holds a part of
    the rows (0) or columns (1) of a matrix; A is then made over the other dimension and summed over ranks.
    """
    if matrix.dim() < 2:
        raise ValueError(f"newton_schulz: needs a matrix, got shape {tuple(matrix.shape)}")
    dim, group = (-1, "") if split is None else (split[0], split[1].group_name)
    flat = [value for triple in coefficients for value in triple]
    return _NEWTON_SCHULZ(matrix, steps, flat, eps, dtype, dim, group)


def _check_adam(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors, copies: Tensors, *_: Any
) -> None:
    _require_alike("adam_step", params, grads, exp_avgs, exp_avg_sqs, copies, needed=3)


def _check_sgd(
    params: Tensors, grads: Tensors, buffers: Tensors, copies: Tensors, lr: float, momentum: float, *_: Any
) -> None:
    _require_alike("sgd_step", params, grads, buffers, copies, needed=2 if momentum else 1)


def _require_alike(kernel: str, first: Tensors, *others: Tensors, needed: int = 0) -> None:
    """ValueError unless the others hold tensors of the shapes of the first, or, if not `needed`, none."""
    for number, column in enumerate(others):
        if len(column) != len(first) and (len(column) or number < needed):
            raise ValueError(f"{kernel}: lists of {len(first)} and {len(column)} tensors")
        for i, (x, y) in enumerate(zip(first, column, strict=bool(column))):
            if x.shape != y.shape:
                raise ValueError(
                    f"{kernel}: tensor {i} has shapes {tuple(x.shape)} and {tuple(y.shape)}, expected one"
                )


# ---- csrc: calls for the tensors of the same dtypes; what a kernel does not take goes to the composite


def _fits(columns: Sequence[list[Tensor]], i: int, fp32: Sequence[int]) -> bool:
    """Whether position i has tensors of one dense layout and fp32 ones in the `fp32` columns."""
    state = all(not columns[k] or columns[k][i].dtype == torch.float32 for k in fp32)
    return state and _same_dense_layout([column[i] for column in columns if column])


def _no_fitting(columns: int, fp32: Sequence[int]) -> Callable[..., str | None]:
    """The refusal of csrc: of the first arguments, which are lists, no position fits."""

    def refusal(*args: Any) -> str | None:
        lists = args[:columns]
        if any(_fits(lists, i, fp32) for i in range(len(lists[0]))):
            return None
        return "no tensors have one dense layout, and float32 parameters and state"

    return refusal


def _groups(columns: Sequence[list[Tensor]], fp32: Sequence[int]) -> Iterator[tuple[bool, list, list[int]]]:
    """Splits the lists by dtypes into calls of one kernel: (fitting?, columns, positions)."""
    groups: dict[tuple[bool, tuple[torch.dtype, ...]], list[int]] = defaultdict(list)
    for i in range(len(columns[0])):
        row = [column[i] for column in columns if column]
        groups[_fits(columns, i, fp32), tuple(x.dtype for x in row)].append(i)
    for (fitting, _), positions in groups.items():
        yield fitting, [[column[i] for i in positions] if column else [] for column in columns], positions


def _same_dense_layout(row: list[Tensor]) -> bool:
    first = row[0]
    if all(x.is_contiguous() for x in row):
        return True
    if any(x.stride() != first.stride() for x in row):
        return False
    # Some order of the dimensions makes it contiguous: then the elements are one run of memory.
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    return first.permute(order).is_contiguous()


def _addresses(tensors: Iterable[Tensor]) -> list[int]:
    return [x.data_ptr() for x in tensors]


def _adam_csrc(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    copies: list[Tensor],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    *options: Any,
) -> None:
    eps, weight_decay, decoupled, bias_correction, maximize, grad_scale = options
    for fitting, columns, _ in _groups((params, grads, exp_avgs, exp_avg_sqs, copies), fp32=(0, 2, 3)):
        p, g, m, v, c = columns
        if not fitting:
            _adam_composite(p, g, m, v, c, step, lr, beta1, beta2, *options)
            continue
        native().adam(
            params=_addresses(p),
            grads=_addresses(g),
            exp_avgs=_addresses(m),
            exp_avg_sqs=_addresses(v),
            copies=_addresses(c),
            sizes=[x.numel() for x in p],
            grad_dtype=DTYPE_CODES[g[0].dtype],
            copy_dtype=DTYPE_CODES[c[0].dtype] if c else 0,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            correction1=1.0 - beta1**step if bias_correction else 1.0,
            correction2=1.0 - beta2**step if bias_correction else 1.0,
            decoupled=decoupled,
            maximize=maximize,
            grad_scale=grad_scale,
        )


def _sgd_csrc(
    params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], copies: list[Tensor], *options: Any
) -> None:
    lr, momentum, dampening, weight_decay, nesterov, first, maximize, grad_scale = options
    for fitting, columns, _ in _groups((params, grads, buffers, copies), fp32=(0, 2)):
        if not fitting:
            _sgd_composite(*columns, *options)
            continue
        p, g, b, c = columns
        native().sgd(
            params=_addresses(p),
            grads=_addresses(g),
            buffers=_addresses(b),
            copies=_addresses(c),
            sizes=[x.numel() for x in p],
            grad_dtype=DTYPE_CODES[g[0].dtype],
            copy_dtype=DTYPE_CODES[c[0].dtype] if c else 0,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            first=first,
            maximize=maximize,
            grad_scale=grad_scale,
        )


def _scale_csrc(
    inputs: list[Tensor], outputs: list[Tensor], scale: float, want_norms: bool, want_found: bool
) -> tuple[Tensor | None, Tensor | None]:
    squares = torch.zeros(len(inputs) if want_norms else 0, dtype=torch.float64)
    found = torch.zeros((), dtype=torch.bool)
    for fitting, (ins, outs), positions in _groups((inputs, outputs), fp32=()):
        if not fitting:
            flawed, norms = _scale_composite(ins, outs, scale, want_norms, want_found)
            part = norms.cpu().square() if norms is not None else squares[:0]
        else:
            part = torch.zeros(len(ins) if want_norms else 0, dtype=torch.float64)
            flawed = native().scale_and_norm(
                ins=_addresses(ins),
                outs=_addresses(outs),
                square_sums=part.data_ptr() if want_norms else 0,
                sizes=[x.numel() for x in ins],
                in_dtype=DTYPE_CODES[ins[0].dtype],
                out_dtype=DTYPE_CODES[outs[0].dtype] if outs else 0,
                scale=scale,
            )
        found |= bool(flawed is not None and flawed)
        if want_norms:
            squares[positions] = part
    on = inputs[0].device
    return found.to(on) if want_found else None, squares.sqrt().to(on) if want_norms else None


# ---- composite


def _adam_composite(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    copies: list[Tensor],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    bias_correction: bool,
    maximize: bool,
    grad_scale: float,
) -> None:
    correction1 = 1.0 - beta1**step if bias_correction else 1.0
    correction2 = 1.0 - beta2**step if bias_correction else 1.0
    for i, (p, g, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        wide = p.to(torch.promote_types(p.dtype, torch.float32))
        g = g.to(wide.dtype) * (-grad_scale if maximize else grad_scale)
        if decoupled:
            wide.mul_(1.0 - lr * weight_decay)
        else:
            g = g + weight_decay * wide
        m.mul_(beta1).add_(g, alpha=1.0 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
        wide.addcdiv_(m, (v / correction2).sqrt_().add_(eps), value=-lr / correction1)
        if wide is not p:
            p.copy_(wide)
        if copies:
            copies[i].copy_(p)


def _sgd_composite(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    copies: list[Tensor],
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    first: bool,
    maximize: bool,
    grad_scale: float,
) -> None:
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        g = g.to(p.dtype) * (-grad_scale if maximize else grad_scale) + weight_decay * p
        if momentum:
            buffer = buffers[i]
            buffer.copy_(g if first else momentum * buffer + (1.0 - dampening) * g)
            g = g + momentum * buffer if nesterov else buffer
        p.sub_(g, alpha=lr)
        if copies:
            copies[i].copy_(p)


def _wide(tensors: Sequence[Tensor]) -> torch.dtype:
    """Of norms: Ascend computes no float64; the host computes float64 tensors, which stay as wide."""
    double = any(x.dtype == torch.float64 for x in tensors)
    narrow = tensors[0].device.type == "npu" and on_ascend() and not double
    return torch.float32 if narrow else torch.float64


def _scale_composite(
    inputs: list[Tensor], outputs: list[Tensor], scale: float, want_norms: bool, want_found: bool
) -> tuple[Tensor | None, Tensor | None]:
    found = norms = None
    if want_found:
        found = ~torch.stack([torch.isfinite(x).all() for x in inputs]).all()
    if want_norms:
        norms = torch.stack([torch.linalg.vector_norm(x * scale, dtype=_wide(inputs)) for x in inputs])
    for x, out in zip(inputs, outputs, strict=bool(outputs)):
        out.copy_(x * scale)
    return found, norms


def _l2_norm_csrc(tensors: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(_scale_csrc(tensors, [], 1.0, True, False)[1])


def _l2_norm_composite(tensors: list[Tensor]) -> Tensor:
    wide = _wide(tensors)
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(x, dtype=wide) for x in tensors]))


def _l2_norm_mindspore(tensors: list[Any]) -> Any:
    import mindspore as ms
    from mindspore import mint

    norms = [mint.linalg.vector_norm(x, 2, dtype=ms.float32) for x in tensors]
    return mint.linalg.vector_norm(mint.stack(norms), 2)


def _newton_schulz(
    matrix: Tensor,
    steps: int,
    coefficients: list[float],
    eps: float,
    dtype: torch.dtype,
    split: int,
    group_name: str,
) -> Tensor:
    turned = matrix.shape[-2] > matrix.shape[-1] if split < 0 else split == 0
    group = group_named(group_name) if group_name else None
    x = matrix.mT if turned else matrix
    x = x.reshape(-1, *x.shape[-2:])
    square = torch.linalg.vector_norm(x.float(), dim=(-2, -1), keepdim=True).square()
    if group is not None:
        dist.all_reduce(square, group=group)
    x = (x / (square.sqrt().to(x.dtype) + eps)).to(dtype)
    triples = list(zip(*(coefficients[i::3] for i in range(3)), strict=True))
    for _, (a, b, c) in zip(range(steps), itertools.cycle(triples), strict=False):
        gram = torch.bmm(x, x.mT)
        if group is not None:
            dist.all_reduce(gram, group=group)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.to(matrix.dtype)
    x = x.mT if turned else x
    return x.reshape(matrix.shape).clone(memory_format=torch.contiguous_format)


# ---- MindSpore: AdamW, Norm, AllFinite


def _scale_mindspore(
    inputs: list[Any], outputs: list[Any], scale: float, want_norms: bool, want_found: bool
) -> tuple[Any, Any]:
    import mindspore as ms
    from mindspore import mint
    from mindspore.ops.operations.nn_ops import AllFinite

    found = norms = None
    if want_found:  # the operator says whether they are not
        found = AllFinite()(list(inputs))
    if want_norms:
        norms = mint.stack([mint.linalg.vector_norm(x * scale, 2, dtype=ms.float32) for x in inputs])
    for x, out in zip(inputs, outputs, strict=bool(outputs)):
        if x is out:
            x.mul_(scale)
        else:
            out.copy_(x * scale)
    return found, norms


def _adam_mindspore(
    params: list[Any],
    grads: list[Any],
    exp_avgs: list[Any],
    exp_avg_sqs: list[Any],
    copies: list[Any],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    bias_correction: bool,
    maximize: bool,
    grad_scale: float,
) -> None:
    import mindspore as ms
    from mindspore import mint
    from mindspore.ops import auto_generate

    # A tensor of the device, so that it is not waited for; the operator counts from 0.
    counter = mint.full((1,), step - 1.0, dtype=ms.float32)
    options = (lr, beta1, beta2, weight_decay, eps, False, maximize)
    for i, (p, g, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        g = cast(g, ms.float32)
        g = g if grad_scale == 1.0 else g * grad_scale
        auto_generate.adamw_op(p, m, v, v, g, counter, *options)
        if copies:
            copies[i].copy_(p)


def _adam_refusal(
    params: list[Tensor], grads: Any, exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], *rest: Any
) -> str | None:
    *_, decoupled, bias_correction, _, _ = rest
    state = (*params, *exp_avgs, *exp_avg_sqs, *rest[0])
    plain = decoupled and bias_correction and all(t.is_contiguous() for t in state)
    if plain and all(t.dtype == torch.float32 for t in (*params, *exp_avgs, *exp_avg_sqs)):
        return None
    return "AdamW updates contiguous float32 tensors, with bias correction"


# ---- operators


def _fake_scale(
    inputs: list[Tensor], outputs: list[Tensor], scale: float, want_norms: bool, want_found: bool
) -> tuple[Tensor | None, Tensor | None]:
    on = inputs[0].device
    found = torch.empty((), dtype=torch.bool, device=on) if want_found else None
    return found, torch.empty(len(inputs), dtype=_wide(inputs), device=on) if want_norms else None


def _in_place(scaled: Any) -> Any:
    return lambda tensors, *options: scaled(tensors, tensors, *options)


_ADAM = Operator(
    "adam_step(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] copies, int step, float lr, float beta1, float beta2, float eps, float weight_decay, "
    "bool decoupled, bool bias_correction, bool maximize, float grad_scale) -> ()",
    decides=("params", "grads", "exp_avgs", "exp_avg_sqs", "copies"),
    fake=lambda *_: None,
    composite=_adam_composite,
    csrc=_adam_csrc,
    mindspore=_adam_mindspore,
    refusal=_adam_refusal,
    csrc_refusal=_no_fitting(5, fp32=(0, 2, 3)),
    check=_check_adam,
)

_SGD = Operator(
    "sgd_step(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] buffers, Tensor(c!)[] copies, float lr, "
    "float momentum, float dampening, float weight_decay, bool nesterov, bool first, bool maximize, "
    "float grad_scale) -> ()",
    decides=("params", "grads", "buffers", "copies"),
    fake=lambda *_: None,
    composite=_sgd_composite,
    csrc=_sgd_csrc,
    csrc_refusal=_no_fitting(4, fp32=(0, 2)),
    check=_check_sgd,
)

_SCALE = Operator(
    "multi_scale(Tensor[] inputs, Tensor(a!)[] outputs, float scale, bool want_norms, bool want_found) -> "
    "(Tensor, Tensor)",
    decides=("inputs", "outputs"),
    fake=_fake_scale,
    composite=_scale_composite,
    csrc=_scale_csrc,
    mindspore=_scale_mindspore,
    csrc_refusal=_no_fitting(2, fp32=()),
    check=lambda inputs, outputs, *_: _require_alike("multi_scale", inputs, outputs),
)

_SCALE_IN_PLACE = Operator(
    "multi_scale_(Tensor(a!)[] tensors, float scale, bool want_norms, bool want_found) -> (Tensor, Tensor)",
    decides=("tensors",),
    fake=_in_place(_fake_scale),
    composite=_in_place(_scale_composite),
    csrc=_in_place(_scale_csrc),
    mindspore=_in_place(_scale_mindspore),
)

_L2_NORM = Operator(
    "l2_norm(Tensor[] tensors) -> Tensor",
    decides=("tensors",),
    fake=lambda tensors: torch.empty((), dtype=_wide(tensors), device=tensors[0].device),
    composite=_l2_norm_composite,
    csrc=_l2_norm_csrc,
    mindspore=_l2_norm_mindspore,
)

_NEWTON_SCHULZ = Operator(
    "newton_schulz(Tensor matrix, int steps, float[] coefficients, float eps, ScalarType dtype, int split, "
    "str group) -> Tensor",
    decides=("matrix",),
    fake=lambda matrix, *_: fake_like(matrix),
    composite=_newton_schulz,
)
