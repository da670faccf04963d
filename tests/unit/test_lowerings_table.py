"""The table of lowerings: derivation from schemas, fences, route auto's file, calibration."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import mindspeed_ms.patch  # noqa: F401 - switches the device on
import pytest
import torch
from mindspeed_ms import _runtime
from mindspeed_ms.config import settings
from mindspeed_ms.ops import auto, calibrate, registry, schemas
from mindspeed_ms.ops.schemas import Form

_runtime.ensure_initialized()  # fills the table


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("aten::mm", {("mm", Form.FUNCTIONAL), ("mm.out", Form.OUT)}),
        (
            "aten::add.Tensor",
            {("add.Tensor", Form.FUNCTIONAL), ("add_.Tensor", Form.IN_PLACE), ("add.out", Form.OUT)},
        ),
        ("aten::max.dim", {("max.dim", Form.FUNCTIONAL), ("max.dim_max", Form.OUT)}),
        ("aten::zero", {("zero", Form.FUNCTIONAL), ("zero_", Form.IN_PLACE), ("zero.out", Form.OUT)}),
    ],
)
def test_overloads_come_from_the_schema(name: str, wanted: set[tuple[str, Form]]) -> None:
    assert {tuple(overload) for overload in schemas.overloads(name)} == wanted


@pytest.mark.parametrize("name", ["aten::no_such_operator", "aten::add.NoSuchOverload"])
def test_an_unknown_operator_fails(name: str) -> None:
    with pytest.raises(LookupError, match="has no operator"):
        schemas.overloads(name)


@pytest.mark.parametrize("name", ["aten::add_.Tensor", "aten::add.out", "aten::view"])
def test_an_operator_that_is_not_functional_fails(name: str) -> None:
    with pytest.raises(LookupError, match="not functional"):
        schemas.overloads(name)


def test_a_second_lowering_fails() -> None:
    with pytest.raises(ValueError, match="two lowerings"):
        registry.row("aten::mm", lambda s: s.x @ s.y)


def test_every_in_place_and_out_form_is_registered() -> None:
    for entry in registry.table.values():
        if not entry.kernels():
            continue  # a kernel of the other target
        for overload in entry.overloads:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{overload.name}", "PrivateUse1")


@pytest.mark.parametrize("route", ["mindspore", "csrc"])
def test_a_fence_takes_the_dtype_away(route: str) -> None:
    wrong = registry.Fence("gives zeros", (torch.float16,), (-1, 1))
    kernel = registry.Kernel(torch.cos, registry.FLOATS, (wrong,))
    kernels = {"cpu": kernel, "ascend": kernel, "csrc": None} if route == "mindspore" else {"csrc": kernel}
    entry = dataclasses.replace(registry.table["aten::cos"], **{"cpu": None, "ascend": None, **kernels})
    if route == "csrc" and _runtime.opaque_memory():
        pytest.skip("csrc computes nothing in memory of a device")
    assert entry.routes(torch.float16) == ("host",)
    assert entry.routes(torch.float32) == (route, "host")


def test_an_imprecise_kernel_is_not_for_route_auto() -> None:
    kernel = registry.Kernel(
        torch.cos, registry.FLOATS, (registry.Fence("off", (torch.float32,), (-1, 1), 1e-3),)
    )
    assert kernel.usable == registry.FLOATS
    assert kernel.error(torch.float32) == 1e-3
    assert kernel.error(torch.float64) is None


def test_every_fence_states_symptom_and_version() -> None:
    kernels = [k for entry in registry.table.values() for k in (entry.cpu, entry.ascend, entry.csrc) if k]
    fences = [fence for kernel in kernels for fence in kernel.fences]
    assert len(fences) >= 9
    for fence in fences:
        assert fence.symptom
        assert fence.dtypes
        assert fence.version == "2.10.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "holds no table of routes"),
        ('{"tables": {}}', "holds no table of routes"),
        ('{"routes": {"aten::nothing": {}}}', "which has no lowering"),
        ('{"routes": {"aten::tanh": {"float32": ["host", "mindspore", 4]}}}', "is fenced"),
        ('{"routes": {"aten::mm": {"bfloat16": ["host", "mindspore", 4]}}}', "no kernel on route mindspore"),
        ('{"routes": {"aten::mm": {"float32": ["host", "cuda", 4]}}}', "unknown route"),
    ],
)
def test_a_bad_table_of_routes_fails(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "routes.json"
    file.write_text(text)
    monkeypatch.setattr(settings.AUTO_ROUTES, "known", (file,))
    with pytest.raises(ValueError, match=message):
        auto.apply(registry.table)
    monkeypatch.undo()
    auto.apply(registry.table)


def test_the_shipped_table_is_in_force() -> None:
    for name, by_dtype in json.loads(auto.DEFAULT.read_text())["routes"].items():
        for dtype, (below, above, numel) in by_dtype.items():
            handle = registry.table[name].handle
            assert handle.auto_route(getattr(torch, dtype), max(numel, 1)) == above
            if numel:
                assert handle.auto_route(getattr(torch, dtype), numel - 1) == below


def test_large_products_run_on_mindspores_gemm_called_directly() -> None:
    for name in ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"):
        assert registry.table[name].handle.auto_route(torch.float32, 1024 * 512) == "csrc"


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        ({"host": [1, 1, 1, 1], "csrc": [2, 2, 2, 2]}, ("host", "host", 0)),
        ({"host": [1, 1, 1, 1], "csrc": [1.09] * 4}, ("csrc", "csrc", 0)),
        ({"mindspore": [1, 1, 1, 1], "csrc": [1.09] * 4, "host": [2] * 4}, ("csrc", "csrc", 0)),
        ({"host": [1, 1, 9, 9], "mindspore": [5, 5, 5, 5]}, ("host", "mindspore", 256**2)),
        ({"host": [1, 9, 1, 9], "mindspore": [5, 5, 5, 5]}, ("host", "mindspore", 1024**2)),
    ],
)
def test_calibration_takes_the_fastest(seconds: dict[str, list[float]], wanted: tuple[str, str, int]) -> None:
    assert calibrate.choose(seconds) == wanted


def test_what_was_measured_here_is_in_force_here_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings.AUTO_ROUTES, "known", (None,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert auto.path() == auto.DEFAULT
    calibrate.write({"aten::mm": {"float32": ["host", "csrc", 4]}}, auto.measured())
    assert auto.path() == auto.measured()
    assert json.loads(auto.path().read_text())["routes"] == {"aten::mm": {"float32": ["host", "csrc", 4]}}
    monkeypatch.setattr(auto, "machine", lambda: {"cpu": "another"})
    assert auto.path() == auto.DEFAULT


def test_calibration_measures_and_leaves_wrong_routes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SIDES", (8, 16))
    found = calibrate.measure("aten::mm", torch.float32, rounds=1)
    assert set(found) == {"mindspore", "csrc", "host"}
    assert all(len(times) == 2 and min(times) > 0 for times in found.values())
    monkeypatch.setitem(calibrate.TOLERANCE, torch.float32, 3e-7)
    left = calibrate.measure("aten::exp", torch.float32, rounds=1)
    assert "mindspore" not in left
    assert "host" in left
    monkeypatch.setitem(calibrate.TOLERANCE, torch.float32, -1.0)
    assert set(calibrate.measure("aten::exp", torch.float32, rounds=1)) == {"host"}
    auto.apply(registry.table)
