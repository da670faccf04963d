"""HCCL from Python, and one rank of a test: ``hccl_ranks.py CASE RANK WORLD FOLDER`` prints JSON.

The cases call ``libhccl.so`` directly, with device memory of ``libascendcl.so``: no MindSpore is needed.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p
from pathlib import Path

import numpy as np

_INFO = 4108  # HCCL_ROOT_INFO_BYTES
FLOAT32, INT32 = 4, 2  # HcclDataType
SUM = 0


class Item(ctypes.Structure):
    """HcclSendRecvItem: ``type`` 0 sends, 1 receives."""

    _fields_ = [
        ("type", c_int),
        ("data", c_void_p),
        ("n", c_uint64),
        ("dtype", c_int),
        ("peer", ctypes.c_uint32),
    ]


class Device:
    """Memory and a stream of the simulated device."""

    def __init__(self) -> None:
        self.acl = ctypes.CDLL("libascendcl.so")
        self.acl.aclGetRecentErrMsg.restype = ctypes.c_char_p
        self.stream = c_void_p()
        self.acl.aclrtCreateStream(byref(self.stream))

    def put(self, values: list[float]) -> c_void_p:
        array = np.array(values, np.float32)
        memory = c_void_p()
        assert self.acl.aclrtMalloc(byref(memory), c_size_t(max(array.nbytes, 1)), 0) == 0
        if array.nbytes:
            source = array.ctypes.data_as(c_void_p)
            assert (
                self.acl.aclrtMemcpy(memory, c_size_t(array.nbytes), source, c_size_t(array.nbytes), 1) == 0
            )
        return memory

    def get(self, memory: c_void_p, n: int) -> list[float]:
        array = np.zeros(n, np.float32)
        self._copy(array.ctypes.data_as(c_void_p), memory, array.nbytes, 2)
        return array.tolist()

    def _copy(self, target: c_void_p, source: c_void_p, size: int, kind: int) -> None:
        assert self.acl.aclrtMemcpy(target, c_size_t(size), source, c_size_t(size), kind) == 0

    def wait(self) -> str:
        """Empty, or the error that the stream met."""
        if self.acl.aclrtSynchronizeStream(self.stream) == 0:
            return ""
        return (self.acl.aclGetRecentErrMsg() or b"?").decode()


class Rank:
    """A communicator of ``world`` processes that share ``folder``."""

    def __init__(self, rank: int, world: int, folder: Path) -> None:
        self.device, self.rank, self.world = Device(), rank, world
        self.lib = ctypes.CDLL("libhccl.so")
        info = folder / "root"
        if rank == 0:
            text = ctypes.create_string_buffer(_INFO)
            self.lib.HcclGetRootInfo(text)
            (folder / "unfinished").write_bytes(text.raw)
            (folder / "unfinished").rename(info)
        while not info.exists():
            time.sleep(0.01)
        self.comm = c_void_p()
        text = ctypes.create_string_buffer(info.read_bytes(), _INFO)
        assert self.lib.HcclCommInitRootInfo(world, text, rank, byref(self.comm)) == 0

    def call(self, name: str, *arguments: object) -> None:
        assert getattr(self.lib, name)(*arguments, self.comm, self.device.stream) == 0

    def numbers(self, n: int, step: float = 1) -> list[float]:
        return [10 * self.rank + step * i for i in range(n)]


def _counts(*values: int) -> ctypes.Array[c_uint64]:
    return (c_uint64 * len(values))(*values)


def collectives(r: Rank) -> dict[str, list[float]]:
    """Every collective once."""
    d, n, world = r.device, 2, r.world
    mine, room = d.put(r.numbers(n)), d.put([0.0] * n * world)
    results = {}

    def run(name: str, out: c_void_p, size: int, *arguments: object) -> None:
        r.call(name, *arguments)
        assert d.wait() == "", name
        results[name] = d.get(out, size)

    def u(value: int) -> c_uint64:
        return c_uint64(value)

    wide = d.put(r.numbers(n * world))
    run("HcclAllReduce", room, n, mine, room, u(n), FLOAT32, SUM)
    run("HcclReduce", room, n, mine, room, u(n), FLOAT32, SUM, 1)
    run("HcclAllGather", room, n * world, mine, room, u(n), FLOAT32)
    run("HcclReduceScatter", room, n, wide, room, u(n), FLOAT32, SUM)
    run("HcclScatter", room, n, wide, room, u(n), FLOAT32, 0)
    run("HcclAlltoAll", room, n * world, wide, u(n), FLOAT32, room, u(n), FLOAT32)
    both = d.put(r.numbers(n))
    run("HcclBroadcast", both, n, both, u(n), FLOAT32, 1)
    run("HcclBarrier", both, n)
    sizes, starts = _counts(1, 3), _counts(0, 1)
    n_mine = sizes[r.rank]
    part = d.put(r.numbers(n_mine))
    run("HcclAllGatherV", room, 4, part, u(n_mine), room, sizes, starts, FLOAT32)
    run("HcclReduceScatterV", room, n_mine, wide, sizes, starts, room, u(n_mine), FLOAT32, SUM)
    # rank 0 sends 1 to itself and 3 to rank 1; rank 1 sends 2 and 0
    matrix = [[1, 3], [2, 0]]
    send, receive = matrix[r.rank], [row[r.rank] for row in matrix]
    total = sum(receive)
    run(
        "HcclAlltoAllV",
        room,
        total,
        *(wide, _counts(*send), _counts(0, send[0]), FLOAT32),
        *(room, _counts(*receive), _counts(0, receive[0]), FLOAT32),
    )
    run("HcclAlltoAllVC", room, total, wide, _counts(*matrix[0], *matrix[1]), FLOAT32, room, FLOAT32)
    return results


def all_gather(r: Rank) -> dict[str, list[float]]:
    mine, room = r.device.put(r.numbers(1)), r.device.put([0.0] * r.world)
    r.call("HcclAllGather", mine, room, c_uint64(1), FLOAT32)
    assert r.device.wait() == ""
    return {"gathered": r.device.get(room, r.world)}


def _neighbours(r: Rank) -> tuple[int, int]:
    return (r.rank + 1) % r.world, (r.rank - 1) % r.world


def ring_in_one_batch(r: Rank) -> dict[str, list[float]]:
    """Everybody sends to the next and receives from the one before, as one batch: no deadlock."""
    following, before = _neighbours(r)
    mine, room = r.device.put(r.numbers(2)), r.device.put([0.0, 0.0])
    items = (Item * 2)(Item(0, mine, 2, FLOAT32, following), Item(1, room, 2, FLOAT32, before))
    r.call("HcclBatchSendRecv", items, 2)
    assert r.device.wait() == ""
    return {"received": r.device.get(room, 2)}


def both_send_first(r: Rank) -> dict[str, str]:
    """A schedule that a chip never finishes."""
    following, before = _neighbours(r)
    mine, room = r.device.put(r.numbers(2)), r.device.put([0.0, 0.0])
    r.call("HcclSend", mine, c_uint64(2), FLOAT32, following)
    r.call("HcclRecv", room, c_uint64(2), FLOAT32, before)
    error = r.device.wait()
    time.sleep(3)  # the other rank must see a deadlock, not a peer that is gone
    return {"error": error}


def in_order(r: Rank) -> dict[str, list[float]]:
    """Rank 0 sends twice, rank 1 receives twice: the order is kept."""
    buffers = [r.device.put(r.numbers(2, step)) for step in (1, 2)]
    for buffer in buffers:
        r.call("HcclSend" if r.rank == 0 else "HcclRecv", buffer, c_uint64(2), FLOAT32, 1 - r.rank)
    assert r.device.wait() == ""
    return {"received": [x for buffer in buffers for x in r.device.get(buffer, 2)]}


def different_calls(r: Rank) -> dict[str, str]:
    """Two ranks meet in collectives of different sizes."""
    mine, room = r.device.put(r.numbers(2)), r.device.put([0.0] * 8)
    r.call("HcclAllReduce", mine, room, c_uint64(2 - r.rank), FLOAT32, SUM)
    return {"error": r.device.wait()}


def unequal_counts(r: Rank) -> dict[str, str]:
    """An all-to-all in which a rank expects more than it is sent."""
    wide, room = r.device.put(r.numbers(8)), r.device.put([0.0] * 8)
    one, two = _counts(1, 1), _counts(2, 1)
    starts = _counts(0, 2)
    r.call("HcclAlltoAllV", wide, one, starts, FLOAT32, room, two if r.rank else one, starts, FLOAT32)
    return {"error": r.device.wait()}


def lost_peer(r: Rank) -> dict[str, str]:
    """The last rank ends before the collective."""
    if r.rank == r.world - 1:
        return {"error": "gone"}
    mine, room = r.device.put(r.numbers(2)), r.device.put([0.0] * 8)
    r.call("HcclAllReduce", mine, room, c_uint64(2), FLOAT32, SUM)
    return {"error": r.device.wait()}


def lost_peer_in_another_stream(r: Rank) -> dict[str, str]:
    """A stream waits for an event behind a collective whose peer is gone: it stops as well."""
    if r.rank == r.world - 1:
        return {"error": "gone"}
    acl, event, waiting = r.device.acl, c_void_p(), Device()
    mine, room = r.device.put(r.numbers(2)), r.device.put([0.0] * 8)
    r.call("HcclAllReduce", mine, room, c_uint64(2), FLOAT32, SUM)
    assert acl.aclrtCreateEvent(byref(event)) == 0
    assert acl.aclrtRecordEvent(event, r.device.stream) == 0
    assert acl.aclrtStreamWaitEvent(waiting.stream, event) == 0
    return {"error": waiting.wait()}


def no_float64(r: Rank) -> dict[str, str]:
    """HCCL reduces no float64."""
    mine, room = r.device.put(r.numbers(4)), r.device.put([0.0] * 4)
    r.call("HcclAllReduce", mine, room, c_uint64(2), 10, SUM)
    return {"error": r.device.wait()}


CASES: dict[str, Callable[[Rank], object]] = {
    case.__name__: case
    for case in (
        collectives,
        all_gather,
        ring_in_one_batch,
        both_send_first,
        in_order,
        different_calls,
        unequal_counts,
        lost_peer,
        lost_peer_in_another_stream,
        no_float64,
    )
}

if __name__ == "__main__":
    name, rank, world, folder = sys.argv[1:]
    print(json.dumps(CASES[name](Rank(int(rank), int(world), Path(folder)))))
