"""How a fused kernel is a torch operator ``mindspeed_ms::name``: one declaration, seen whole by every tool.

:class:`Operator` registers a schema with up to three forms (csrc, mindspore, composite), of which each call
takes the one that csrc/aten/routes.cpp chooses, a fake for FakeTensor and
torch.compile, the rule by which a gradient is made, and the cast under autocast. The gradient of a kernel is
an operator of its own, so that compiled and recorded graphs hold it, too.

Ways to register were measured on rms_norm of 8 x 64, forward and backward: ``torch.library.custom_op`` takes
90 us more than a bare ``autograd.Function``, ``Library.impl`` with ``register_autograd`` 40 us, with an
``autograd.Function`` at the Autograd key, as here, 16 us (tests/benchmarks/dispatch.py has the row).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mindspeed_ms import _runtime
from mindspeed_ms.routes import declare
from mindspeed_ms.routes.choice import NATIVE
from torch.autograd.function import once_differentiable

Tensor = torch.Tensor
Form = Callable[..., Any]

_library = torch.library.Library("mindspeed_ms", "DEF")

DEVICES = {"cpu": "CPU", "npu": "PrivateUse1"}
"""Device -> dispatch key: a kernel takes tensors of either."""

OPERATORS: dict[str, Operator] = {}
"""Every operator that is declared, by name."""


def _keys(functionality: str) -> torch._C.DispatchKeySet:
    """Dispatch keys of a functionality, of both devices."""
    keys = [getattr(torch._C.DispatchKey, f"{functionality}{key}") for key in DEVICES.values()]
    return torch._C.DispatchKeySet(keys[0]) | torch._C.DispatchKeySet(keys[1])


_AUTOCAST, _AUTOGRAD = _keys("Autocast"), _keys("Autograd")


@dataclass(frozen=True)
class Gradient:
    """How autograd differentiates an operator."""

    save: Callable[[Any, tuple[Any, ...], Any], None]
    """(ctx, arguments, results): keeps what `backward` needs, and marks results without a gradient."""
    backward: Callable[..., tuple[Tensor | None, ...]]
    """(ctx, gradient of each result or None) -> gradient of each argument or None."""


class Operator:
    """A kernel: called as a function of all arguments of its schema, in order.

    `schema` has neither defaults nor keyword arguments; those belong to the public Python function, which
    sorts its arguments and calls this.

    Args:
        decides: names of the tensors whose device and dtype decide which form takes the call.
        fake: shapes and dtypes of the results, as torch.library.register_fake wants it.
        composite: the reference in torch operators; takes any floating dtype.
        csrc: on raw pointers, for float32, bfloat16 and float16 in host memory; by default the composite.
        mindspore: on MindSpore tensors, the operators of Ascend; by default the composite.
        refusal: why the mindspore form does not take these arguments, or None. None takes empty ones.
        csrc_refusal: the same of the csrc form.
        check: raises ValueError or TypeError for arguments that do not fit each other, as forms hand
            addresses on. Tools call operators with what they find, not only through the public functions.
        gradient: None for an operator that is not differentiable, as all gradients are.
        lower: under autocast floating tensors are cast to its dtype, as torch does for products. Others are
            left as they are: kernels compute in float32 whatever they are given.
    """

    def __init__(
        self,
        schema: str,
        *,
        decides: Sequence[str],
        fake: Form,
        composite: Form,
        csrc: Form | None = None,
        mindspore: Form | None = None,
        refusal: Callable[..., str | None] | None = None,
        csrc_refusal: Callable[..., str | None] | None = None,
        check: Callable[..., None] | None = None,
        gradient: Gradient | None = None,
        lower: bool = False,
    ) -> None:
        self.name = schema.partition("(")[0]
        self.composite = composite
        self.on_mindspore = mindspore is not None
        declare(self.name, mindspore=NATIVE if mindspore else (), csrc=NATIVE if csrc else ())
        _library.define(schema, tags=[torch.Tag.pt2_compliant_tag])
        self.overload = getattr(torch.ops.mindspeed_ms, self.name).default
        arguments = self.overload._schema.arguments
        self._tensors = tuple(i for i, a in enumerate(arguments) if "Tensor" in str(a.type))
        names = [argument.name for argument in arguments]
        positions = tuple(names.index(name) for name in decides)
        kernel: Form = _runtime.FusedKernel(
            self.name,
            positions,
            check=check,
            mindspore=mindspore,
            refusal=refusal,
            csrc=csrc,
            csrc_refusal=csrc_refusal,
            composite=composite,
        )
        written = [i for i in self._tensors if arguments[i].is_write]
        if written:
            kernel = _writing(kernel, written)
        for key in DEVICES.values():
            _library.impl(self.name, kernel, key)
        fake = _fitting(self.name, fake, check)
        torch.library.register_fake(f"mindspeed_ms::{self.name}", fake, lib=_library)
        self._list = next((i for i in self._tensors if "List" in str(arguments[i].type)), None)
        if gradient is not None:
            self._function = _function(self.name, self.overload, gradient, self._list)
        at_autograd = torch.library.fallthrough_kernel if gradient is None else self._differentiable
        _library.impl(self.name, at_autograd, "Autograd")
        if lower:
            for on, key in DEVICES.items():
                _library.impl(self.name, _cast(self.overload, on), f"Autocast{key}")
        OPERATORS[self.name] = self

    def __call__(self, *args: Any) -> Any:
        for i in self._tensors:
            if type(args[i]) not in _PLAIN and _wrapped(args[i]):
                return self.composite(*args)
        return self.overload(*args)

    def _differentiable(self, *args: Any) -> Any:
        """The kernel at the Autograd key."""
        if torch.is_grad_enabled():
            flat = args if self._list is None else _flat(args, self._list)
            for value in flat:
                if isinstance(value, torch.Tensor) and value.requires_grad:
                    return self._function.apply(*flat)
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*args)


_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, type(None)))


def _wrapped(value: Any) -> bool:
    """Whether it is a tensor with a dispatch of its own, that knows torch's operators only (a DTensor)."""
    if isinstance(value, list | tuple):
        return any(map(_wrapped, value))
    if not isinstance(value, torch.Tensor):
        return False
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    own = type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    return own and not isinstance(value, FakeTensor | FunctionalTensor)


def _fitting(name: str, fake: Form, check: Callable[..., None] | None) -> Form:
    """The fake, after the checks that the kernel makes: a graph is not captured of a call that raises."""

    def call(*args: Any) -> Any:
        devices = sorted({str(tensor.device) for tensor in _tensors(args)})
        if len(devices) > 1:
            raise RuntimeError(
                f"mindspeed_ms::{name}: expected all tensors to be on the same device, but found "
                f"{' and '.join(devices)}; move them with .to()."
            )
        if check is not None:
            check(*args)
        return fake(*args)

    return call


def _writing(kernel: Form, written: Sequence[int]) -> Form:
    """A kernel that writes into arguments: autograd hears of it, which does not see what csrc writes."""

    def call(*args: Any) -> Any:
        results = kernel(*args)
        changed = _tensors(args[i] for i in written)
        torch.autograd.graph.increment_version([t for t in changed if not t.is_inference()])
        return results

    return call


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among arguments, those in lists, too."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, list):
            found.extend(_tensors(value))
        elif isinstance(value, torch.Tensor):
            found.append(value)
    return found


def _flat(args: tuple[Any, ...], at: int) -> tuple[Any, ...]:
    """Arguments with the tensors of the list at `at` in its place, for autograd; last, their number."""
    return *args[:at], *args[at], *args[at + 1 :], len(args[at])


def _function(name: str, overload: Any, gradient: Gradient, at: int | None) -> type[torch.autograd.Function]:
    """`at`: which argument is a list of tensors."""
    below = torch._C._AutoDispatchBelowAutograd

    def forward(ctx: Any, *args: Any) -> Any:
        if at is not None:
            end = at + args[-1]
            args = *args[:at], list(args[at:end]), *args[end:-1]
            ctx.count = end - at
        with below():
            results = overload(*args)
        ctx.set_materialize_grads(False)
        gradient.save(ctx, args, results)
        return results

    def backward(ctx: Any, *grads: Any) -> Any:
        found = gradient.backward(ctx, *grads)
        if at is None:
            return found
        return *found[:at], *(found[at] or [None] * ctx.count), *found[at + 1 :], None

    body = {"forward": staticmethod(forward), "backward": staticmethod(once_differentiable(backward))}
    return type(name, (torch.autograd.Function,), body)


def _cast(overload: Any, on: str) -> Form:
    """The kernel at the Autocast key of device `on`."""

    def call(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(on)
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return overload(*(_to(value, dtype) for value in args))

    return call


def _to(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_to(each, dtype) for each in value]
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value


def gradients(
    function: Form, inputs: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> tuple[Any, ...]:
    """Gradients of torch operators, for the composite of a gradient: function(*inputs) is made once more.

    `grads`: of each result, None for one that was not used. None for an input that is None or gets none.
    """
    exclude = torch._C._dispatch_tls_local_exclude_set() - _AUTOGRAD
    with (
        torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), exclude),
        torch.enable_grad(),
    ):
        leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
        results = function(*leaves)
        results = results if isinstance(results, tuple) else (results,)
        pairs = [(y, g) for y, g in zip(results, grads, strict=True) if g is not None and y.requires_grad]
        if not pairs:
            return (None,) * len(leaves)
        wanted = [leaf for leaf in leaves if leaf is not None]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in pairs], wanted, [g.to(y.dtype) for y, g in pairs], allow_unused=True
            )
        )
    return tuple(None if leaf is None else next(found) for leaf in leaves)


# ---- gradients that are a function of the kernel's arguments: schema (Tensor dy, ARGUMENTS) -> (Tensor, ...)


def of_arguments(backward: Operator, inputs: int) -> Gradient:
    """Keeps all arguments; `backward` makes the gradients of the first `inputs` of them, all tensors."""

    def save(ctx: Any, args: tuple[Any, ...], result: Tensor) -> None:
        ctx.save_for_backward(*args[:inputs])
        ctx.options = args[inputs:]

    def grads(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        rest = (None,) * len(ctx.options)
        if dy is None:
            return (None,) * inputs + rest
        found = backward(dy, *ctx.saved_tensors, *ctx.options)
        found = found if isinstance(found, tuple | list) else (found,)
        wanted = zip(found, ctx.needs_input_grad, strict=False)
        return *(grad if needed else None for grad, needed in wanted), *rest

    return Gradient(save, grads)


def composite_gradient(composite: Form, inputs: int) -> Form:
    """The composite of such a gradient."""

    def call(dy: Tensor, *args: Any) -> Any:
        rest = args[inputs:]
        found = gradients(lambda *tensors: composite(*tensors, *rest), args[:inputs], (dy,))
        return found if inputs > 1 else found[0]

    return call


def mindspore_gradient(form: Form, inputs: int) -> Form:
    """Its MindSpore form, by MindSpore's autograd."""

    def call(dy: Any, *args: Any) -> Any:
        rest = args[inputs:]
        found = mindspore_gradients(lambda *tensors: form(*tensors, *rest), args[:inputs], (dy,))
        return found if inputs > 1 else found[0]

    return call


def fake_gradient(inputs: int) -> Form:
    """Its fake: each like its tensor."""

    def call(dy: Tensor, *args: Any) -> Any:
        found = tuple(None if t is None else fake_like(t) for t in args[:inputs])
        return found if inputs > 1 else found[0]

    return call


def fake_like(x: Tensor) -> Tensor:
    """A contiguous tensor of x's shape and dtype."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


# ---- MindSpore


def cast(tensor: Any, dtype: Any) -> Any:
    """A tensor of MindSpore in `dtype`: itself where it is, which MindSpore finds out in an operator."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def mindspore_gradients(function: Form, inputs: Sequence[Any], grads: Sequence[Any]) -> tuple[Any, ...]:
    """As :func:`gradients`, of MindSpore operators by MindSpore's autograd, for the form of a gradient."""
    from mindspore import _c_expression
    from mindspore.ops import auto_generate

    # Tensors of their own: the device keeps those that it lends, for every borrower.
    leaves = [None if x is None else auto_generate.view(x, x.shape) for x in inputs]
    with _recording():
        for leaf in leaves:
            if leaf is not None:
                leaf.requires_grad_()
        results = function(*leaves)
        results = results if isinstance(results, tuple) else (results,)
    pairs = [pair for pair in zip(results, grads, strict=True) if pair[1] is not None]
    wanted = tuple(leaf for leaf in leaves if leaf is not None)
    found = iter(
        _c_expression.run_backward(
            tuple(y for y, _ in pairs),
            tuple(g for _, g in pairs),
            False,
            False,
            wanted,
            True,
            accumulate_grad=False,
        )
    )
    return tuple(None if leaf is None else next(found) for leaf in leaves)


@contextmanager
def _recording() -> Iterator[None]:
    from mindspore.graph.api import _pynative_executor

    before = _pynative_executor.grad_flag()
    _pynative_executor.set_grad_flag(True)
    try:
        yield
    finally:
        _pynative_executor.set_grad_flag(before)
