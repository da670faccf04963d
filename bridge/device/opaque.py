"""Opaque device memory: the C++ runtime reaches it only through these functions of ``ms.Tensor``.

On Ascend an npu storage is a contiguous ``ms.Tensor`` whose address torch must not use. It is on the device
from the start: MindSpore would move a host tensor there by itself when an operator meets it, but then only
the tensor gets the new address, not the views that were made before.
"""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms import _runtime

DEVICE = "Ascend"


def install() -> None:
    """Hands the hooks to the C++ runtime."""
    import mindspore as ms
    from mindspore import mint
    from mindspore.ops import auto_generate

    # An operator of a tensor, which costs half of what mint.empty does.
    like = mint.empty((1,), dtype=ms.float32, device=DEVICE)

    def allocate(sizes: tuple[int, ...], dtype: Any) -> Any:
        return like.new_empty(sizes, dtype=dtype)

    hooks = {
        "allocate": allocate,
        "view": auto_generate.as_strided,
        "reshape": ms.Tensor.view,
        "retype": _retype,
        "copy": ms.Tensor.copy_,
        "cast": ms.Tensor.to,
        "clone": ms.Tensor.clone,
        "fill": ms.Tensor.fill_,
        "settle": _settle,
        "write_host": _write_host,
        "send": _send,
        "to_host": _to_host,
        "pin": _pin,
        "synchronize": ms.runtime.synchronize,
    }
    _runtime.set_opaque_hooks(hooks)


def _retype(tensor: Any, numel: int, dtype: Any) -> Any:
    """The first `numel` elements of a contiguous tensor, their bytes read as `dtype`."""
    from mindspore.ops import auto_generate

    return auto_generate.view_dtype(auto_generate.as_strided(tensor, (numel,), (1,), 0), dtype)


def _settle(result: Any) -> Any:
    """A copy of a result that is not contiguous, not on the device or not alone in its memory."""
    if result.device == "CPU":
        return _send(result)
    return result.clone() if result.is_contiguous() else result.contiguous()


def _write_host(view: Any, host: Any) -> None:
    """Moved explicitly: that an operator moves its host arguments is a convenience that users may switch off
    (MS_DEV_DISABLE_AUTO_H2D).
    """
    view.copy_(_send(host), non_blocking=True)


def _send(host: Any) -> Any:
    """In the order of the stream; blocking, MindSpore would wait for all that the stream has to do."""
    return host.move_to(DEVICE, blocking=False)


def _to_host(view: Any) -> torch.Tensor:
    """MindSpore makes the elements contiguous on the device, copies those and waits for them."""
    return torch.from_numpy(view.asnumpy())


def _pin(nbytes: int) -> Any:
    import mindspore as ms
    from mindspore import mint

    return mint.empty((nbytes,), dtype=ms.uint8, device="CPU", pin_memory=True)
