"""Random state of device npu: one generator per device, with torch.cuda's interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from mindspeed_ms import _runtime
from mindspeed_ms.device.streams import device_index


def generator(device: Any = None) -> torch.Generator:
    """Default generator of a device."""
    return _runtime.default_generator(device_index(device))


class DefaultGenerators:
    """``torch.cuda.default_generators``: indexable by device."""

    def __len__(self) -> int:
        return _runtime.device_count()

    def __getitem__(self, index: int) -> torch.Generator:
        if not -len(self) <= index < len(self):
            raise IndexError(f"npu device index {index} is out of range: {len(self)} device(s) are visible.")
        return _runtime.default_generator(index % len(self))

    def __iter__(self) -> Iterator[torch.Generator]:
        return (self[index] for index in range(len(self)))


default_generators = DefaultGenerators()


def get_rng_state(device: Any = "npu") -> torch.Tensor:
    """State of a device's generator, a CPU uint8 tensor."""
    return generator(device).get_state()


def set_rng_state(new_state: torch.Tensor, device: Any = "npu") -> None:
    generator(device).set_state(new_state.cpu())


def get_rng_state_all() -> list[torch.Tensor]:
    return [g.get_state() for g in default_generators]


def set_rng_state_all(new_states: Iterable[torch.Tensor]) -> None:
    for index, state in enumerate(new_states):
        set_rng_state(state, index)


def manual_seed(seed: int) -> None:
    """Seeds the current device."""
    generator().manual_seed(int(seed))


def manual_seed_all(seed: int) -> None:
    """Seeds every device."""
    for g in default_generators:
        g.manual_seed(int(seed))


def seed() -> int:
    """Seeds the current device from the system's entropy; returns the seed."""
    return generator().seed()


def seed_all() -> None:
    value = generator().seed()
    manual_seed_all(value)


def initial_seed() -> int:
    """Seed of the current device's generator."""
    return generator().initial_seed()
