"""Optimizer steps and multi-tensor operations over lists of tensors; a flat buffer is a list of one."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from mindspeed_ms.kernels.backend import DTYPE_CODES, implementation, launch
from mindspeed_ms.kernels.dispatch import choose, on_mindspore

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
    state = (*params, *exp_avgs, *exp_avg_sqs)
    plain = decoupled and bias_correction and all(t.dtype == torch.float32 for t in state)
    dense = all(t.is_contiguous() for t in state)
    refusal = None if plain and dense else "AdamW updates contiguous float32 tensors, with bias correction"
    if params and choose("adam_step", *state, *grads, refusal=refusal) == "mindspore":
        counter = torch.tensor([step - 1], dtype=torch.float32, device=params[0].device)
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        for p, g, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
            g = g.float() if grad_scale == 1.0 else g.float() * grad_scale
            on_mindspore("adam_step", p, g, m, v, counter, **options)
        for copy, p in zip(copies, params, strict=bool(copies)):
            copy.copy_(p)
        return
    correction1 = 1.0 - betas[0] ** step if bias_correction else 1.0
    correction2 = 1.0 - betas[1] ** step if bias_correction else 1.0
    for native_part, columns in _groups(
        "adam_step", (params, grads, exp_avgs, exp_avg_sqs, copies), fp32=(0, 2, 3)
    ):
        if native_part:
            p, g, m, v, c = columns
            launch(
                "adam",
                p[0],
                *(_addresses(x) for x in columns),
                [x.numel() for x in p],
                DTYPE_CODES[g[0].dtype],
                DTYPE_CODES[c[0].dtype] if c else 0,
                lr,
                *betas,
                eps,
                weight_decay,
                correction1,
                correction2,
                decoupled,
                maximize,
                grad_scale,
            )
            continue
        for i, (p, g, m, v) in enumerate(zip(*columns[:4], strict=True)):
            wide = p.to(torch.promote_types(p.dtype, torch.float32))
            g = g.to(wide.dtype) * (-grad_scale if maximize else grad_scale)
            if decoupled:
                wide.mul_(1.0 - lr * weight_decay)
            else:
                g = g + weight_decay * wide
            m.mul_(betas[0]).add_(g, alpha=1.0 - betas[0])
            v.mul_(betas[1]).addcmul_(g, g, value=1.0 - betas[1])
            wide.addcdiv_(m, (v / correction2).sqrt_().add_(eps), value=-lr / correction1)
            if wide is not p:
                p.copy_(wide)
            if columns[4]:
                columns[4][i].copy_(p)


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
    choose("sgd_step", *params, *grads)
    if momentum and len(momentum_buffers) != len(params):
        raise ValueError(f"sgd_step: momentum needs {len(params)} buffers, got {len(momentum_buffers)}")
    if not momentum:
        momentum_buffers = ()
    for native_part, columns in _groups("sgd_step", (params, grads, momentum_buffers, copies), fp32=(0, 2)):
        if native_part:
            p, g, _, c = columns
            launch(
                "sgd",
                p[0],
                *(_addresses(x) for x in columns),
                [x.numel() for x in p],
                DTYPE_CODES[g[0].dtype],
                DTYPE_CODES[c[0].dtype] if c else 0,
                lr,
                momentum,
                dampening,
                weight_decay,
                nesterov,
                first,
                maximize,
                grad_scale,
            )
            continue
        for i, (p, g) in enumerate(zip(*columns[:2], strict=True)):
            g = g.to(p.dtype) * (-grad_scale if maximize else grad_scale) + weight_decay * p
            if momentum:
                buffer = columns[2][i]
                buffer.copy_(g if first else momentum * buffer + (1.0 - dampening) * g)
                g = g + momentum * buffer if nesterov else buffer
            p.sub_(g, alpha=lr)
            if columns[3]:
                columns[3][i].copy_(p)


def multi_scale(
    inputs: Tensors, scale: float, outputs: Tensors = (), *, want_norms: bool = False
) -> tuple[bool, list[float]]:
    """One pass over `inputs`: outputs = inputs * scale, whether any input is NaN or infinite, and norms.

    `outputs` may be `inputs`, other tensors of the same sizes (any native dtype), or empty to write
    nothing. Returns (found_inf, l2 norm of input * scale per tensor, empty unless want_norms); this is
    multi_tensor_scale, multi_tensor_unscale_l2norm and found-inf of apex / Transformer Engine in one.
    """
    choose("multi_scale", *inputs)
    found = False
    norms = [0.0] * len(inputs) if want_norms else []
    for native_part, columns, positions in _groups_at("multi_scale", (inputs, outputs), fp32=()):
        ins, outs = columns
        if not native_part:
            # The device is waited for once, not for each tensor.
            found |= not bool(torch.stack([torch.isfinite(x).all() for x in ins]).all())
            if want_norms:
                wide = [torch.linalg.vector_norm(x * scale, dtype=torch.float64) for x in ins]
                for position, norm in zip(positions, torch.stack(wide).tolist(), strict=True):
                    norms[position] = norm
            for x, out in zip(ins, outs, strict=bool(outs)):
                out.copy_(x * scale)
            continue
        squares = torch.zeros(len(ins), dtype=torch.float64)
        found |= launch(
            "scale_and_norm",
            ins[0],
            _addresses(ins),
            _addresses(outs),
            squares.data_ptr() if want_norms else 0,
            [x.numel() for x in ins],
            DTYPE_CODES[ins[0].dtype],
            DTYPE_CODES[outs[0].dtype] if outs else 0,
            scale,
        )
        if want_norms:
            for k, square in enumerate(squares.tolist()):
                norms[positions[k]] = math.sqrt(square) if square == square else math.nan
    return found, norms


def l2_norm(tensors: Tensors) -> float:
    """Euclidean norm of all elements together (multi_tensor_l2norm); 0 for an empty list."""
    if tensors and choose("l2_norm", *tensors) == "mindspore":
        norms = torch.stack([on_mindspore("l2_norm", t.reshape(-1).float()) for t in tensors])
        return on_mindspore("l2_norm", norms).item()
    _, norms = multi_scale(tensors, 1.0, want_norms=True)
    return math.sqrt(sum(n * n for n in norms))


def clip_by_norm_(grads: Tensors, max_norm: float, total_norm: float) -> None:
    """Multiplies grads in place by max_norm / (total_norm + 1e-6) when that is below 1 (Megatron's clip)."""
    coefficient = max_norm / (total_norm + 1e-6)
    if coefficient < 1.0:
        multi_scale(grads, coefficient, grads)


#: Coefficients of the quintic Newton-Schulz iteration (Jordan et al. 2024, Muon).
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),)


def newton_schulz(
    matrix: torch.Tensor,
    steps: int = 5,
    coefficients: Sequence[tuple[float, float, float]] = NEWTON_SCHULZ,
    *,
    eps: float = 1e-7,
    dtype: torch.dtype = torch.bfloat16,
    split: tuple[int, dist.ProcessGroup] | None = None,
) -> torch.Tensor:
    """Muon's approximate orthogonalisation of `matrix` (..., rows, cols) (Jordan et al. 2024).

    Runs X <- a X + (b A + c A A) X, A = X X^T, on the normalised matrix in `dtype`, on the smaller side;
    the result has matrix's dtype. Steps take the tuples (a, b, c) of `coefficients` in turn. Three matrix
    products a step, sums fused into them. `split` (dimension, group): every rank of the group holds a part of
    the rows (0) or columns (1) of a matrix; A is then made over the other dimension and summed over ranks.
    """
    if matrix.dim() < 2:
        raise ValueError(f"newton_schulz: needs a matrix, got shape {tuple(matrix.shape)}")
    turned = matrix.shape[-2] > matrix.shape[-1] if split is None else split[0] == 0
    group = None if split is None else split[1]
    x = matrix.mT if turned else matrix
    x = x.reshape(-1, *x.shape[-2:])
    square = torch.linalg.vector_norm(x.float(), dim=(-2, -1), keepdim=True).square()
    if group is not None:
        dist.all_reduce(square, group=group)
    x = (x / (square.sqrt().to(x.dtype) + eps)).to(dtype)
    for _, (a, b, c) in zip(range(steps), itertools.cycle(coefficients), strict=False):
        gram = torch.bmm(x, x.mT)
        if group is not None:
            dist.all_reduce(gram, group=group)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.to(matrix.dtype)
    x = x.mT if turned else x
    return x.reshape(matrix.shape)


def _addresses(tensors: Iterable[torch.Tensor]) -> list[int]:
    return [x.data_ptr() for x in tensors]


def _groups(
    kernel: str, columns: Sequence[Tensors], fp32: Sequence[int]
) -> Iterator[tuple[bool, list[Tensors]]]:
    for native_part, group, _ in _groups_at(kernel, columns, fp32):
        yield native_part, group


def _groups_at(
    kernel: str, columns: Sequence[Tensors], fp32: Sequence[int]
) -> Iterator[tuple[bool, list[Tensors], list[int]]]:
    """Splits the lists by dtypes into calls of one kernel: (native?, columns, positions).

    A position goes native when its tensors share one dense layout, have native dtypes, and those of the
    `fp32` columns are fp32.
    """
    count = len(columns[0])
    for column in columns[1:]:
        if len(column) not in (0, count):
            raise ValueError(f"{kernel}: lists of {count} and {len(column)} tensors")
    groups = defaultdict(list)
    for i in range(count):
        row = [column[i] for column in columns if len(column)]
        if any(x.shape != row[0].shape for x in row):
            raise ValueError(f"{kernel}: tensor {i} has shapes {[tuple(x.shape) for x in row]}, expected one")
        native_part = (
            implementation(*row) == "csrc"
            and all(not len(columns[k]) or columns[k][i].dtype == torch.float32 for k in fp32)
            and _same_dense_layout(row)
        )
        groups[(native_part, *(x.dtype for x in row))].append(i)
    for (native_part, *_), positions in groups.items():
        yield (
            native_part,
            [[column[i] for i in positions] if len(column) else [] for column in columns],
            positions,
        )


def _same_dense_layout(row: list[torch.Tensor]) -> bool:
    first = row[0]
    if all(x.is_contiguous() for x in row):
        return True
    if any(x.stride() != first.stride() for x in row):
        return False
    # Some order of the dimensions makes it contiguous: then the elements are one run of memory.
    order = sorted(range(first.dim()), key=lambda d: -first.stride(d))
    return first.permute(order).is_contiguous()
