"""Ranks on two hosts: two network namespaces joined by a veth pair (or, without the right, two host
names)."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks
import torch
import torch.distributed as dist

pytestmark = pytest.mark.distributed

FLOATS = (torch.float32, torch.bfloat16, torch.float64)


def every_collective(rank, world, store, expected_hosts):
    """Hosts hold the ranks {0, 1} and {2, 3} or less evenly; results are compared with closed forms."""
    ranks.init(rank, world, store, seconds=60)
    op = dist.ReduceOp
    ramp = torch.arange(5000.0) % 13
    for dtype in (*FLOATS, torch.int64):
        t = (ramp + rank).to(dtype)
        dist.all_reduce(t)
        assert torch.equal(t, (ramp * world + sum(range(world))).to(dtype))
    group = dist.distributed_c10d._get_default_group()
    assert len(group.engine._hosts) == expected_hosts
    t = torch.full((3,), rank + 1.0)
    dist.all_reduce(t, op.AVG)
    assert t.tolist() == [(world + 1) / 2] * 3
    t = torch.tensor([256.0 if rank == 0 else 1.0], dtype=torch.bfloat16)
    dist.all_reduce(t)  # one rounding, although it crosses hosts
    assert t.item() == torch.tensor(255.0 + world).to(torch.bfloat16).item()
    for root in range(world):
        t = torch.full((100,), float(rank))
        dist.broadcast(t, root)
        assert (t == root).all()
        t = torch.full((100,), float(rank))
        dist.reduce(t, root, op.MAX)
        assert (t == (world - 1 if rank == root else rank)).all()
        listed = [torch.empty(4) for _ in range(world)] if rank == root else None
        dist.gather(torch.full((4,), float(rank)), listed, root)
        assert rank != root or [int(x[0]) for x in listed] == list(range(world))
        t = torch.empty(4)
        dist.scatter(t, [torch.full((4,), 10.0 + r) for r in range(world)] if rank == root else None, root)
        assert (t == 10 + rank).all()
    out = torch.empty(world * 1000)
    dist.all_gather_single(out, torch.full((1000,), float(rank)), async_op=True).wait()
    assert torch.equal(out, torch.arange(float(world)).repeat_interleave(1000))
    part = torch.empty(1000, dtype=torch.bfloat16)
    dist.reduce_scatter_single(part, torch.full((world * 1000,), rank + 1.0, dtype=torch.bfloat16))
    assert (part == world * (world + 1) / 2).all()
    out = torch.empty(world)
    dist.all_to_all_single(out, torch.arange(float(world)) + 10 * rank)
    assert torch.equal(out, torch.arange(float(world)) * 10 + rank)
    got = torch.empty(70_000)
    requests = [
        dist.P2POp(dist.isend, torch.full((70_000,), float(rank)), (rank + 1) % world),
        dist.P2POp(dist.irecv, got, (rank - 1) % world),
    ]
    for request in dist.batch_isend_irecv(requests):
        request.wait()
    assert (got == (rank - 1) % world).all()
    dist.barrier()
    dist.destroy_process_group()


def named_host(rank, world, store, hosts):
    os.environ["MINDSPEED_MS_HOST_ID"] = hosts[rank]
    every_collective(rank, world, store, len(set(hosts)))


@pytest.mark.parametrize("hosts", ["AABB", "AAB"])
def test_hosts_by_name(hosts):
    """Every path between hosts, with gloo over the loopback interface."""
    ranks.run(named_host, len(hosts), hosts)


@pytest.fixture
def two_namespaces():
    """Names of two network namespaces that reach each other as 10.77.0.1 and 10.77.0.2."""
    names = [f"mms{os.getpid()}{side}" for side in "ab"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "veth0", "netns", names[0], "type", "veth", "peer", "veth0", "netns", names[1])
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            pytest.skip(f"network namespaces are not permitted here: {getattr(error, 'stderr', error)}")
        for i, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "veth0")
            for device in ("lo", "veth0"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_two_network_namespaces(two_namespaces):
    processes = []
    for rank in range(4):
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "veth0", "OMP_NUM_THREADS": "1"}
        prefix = ["ip", "netns", "exec", two_namespaces[rank // 2]]
        command = [*prefix, sys.executable, str(Path(__file__).resolve()), str(rank)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    deadline = time.monotonic() + 200
    try:
        for rank, process in enumerate(processes):
            _, text = process.communicate(timeout=deadline - time.monotonic())
            assert process.returncode == 0, f"rank {rank}: {text[-3000:]}"
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    this_rank = int(sys.argv[1])
    meeting = dist.TCPStore("10.77.0.1", 29577, is_master=this_rank == 0, wait_for_workers=False)
    every_collective(this_rank, 4, meeting, 2)
    meeting.set(f"finished/{this_rank}", "1")
    if this_rank == 0:
        meeting.wait([f"finished/{r}" for r in range(4)])
