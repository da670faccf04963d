"""Backend names that scripts use lead to this backend; groups keep the name the script gave."""

import os
import subprocess
import sys
import warnings
from datetime import timedelta

import pytest
import ranks
import torch
import torch.distributed as dist
from mindspeed_ms.comm import names
from mindspeed_ms.config import launch

pytestmark = pytest.mark.distributed


NAMES = ["nccl", "hccl", "gloo", "cpu:gloo,cuda:nccl", "mindspore", None]


def named(rank, world, store):
    import mindspeed_ms.patch  # noqa: F401
    from mindspeed_ms.comm.process_group import ProcessGroupMindSpore

    answers = []
    for backend in NAMES:
        options = {"store": store, "rank": rank, "world_size": world}
        if backend is not None:
            options["backend"] = backend
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Attempted to get default timeout for nccl")
            dist.init_process_group(**options)
        assert isinstance(dist.distributed_c10d._get_default_group(), ProcessGroupMindSpore)
        sub = dist.new_group([0, 1], backend="gloo", timeout=timedelta(seconds=20))
        assert dist.get_backend(sub) == "gloo"
        assert isinstance(sub, ProcessGroupMindSpore)
        t = torch.ones(3)
        dist.all_reduce(t)
        dist.all_reduce(t, group=sub)
        assert t.tolist() == [4, 4, 4]
        dist.monitored_barrier(timeout=timedelta(seconds=20))
        dist.barrier()
        answers.append(dist.get_backend())
        dist.destroy_process_group()
    return answers


def test_names():
    assert ranks.run(named, 2) == [[*NAMES[:-1], "mindspore"]] * 2


def test_what_is_ours():
    assert names.is_ours("cpu:gloo,cuda:nccl")
    assert names.is_ours("NCCL")
    assert not names.is_ours("mpi")
    assert not names.is_ours("cpu:gloo,cuda:fake")


def test_msrun_variables():
    env = {
        "MS_ROLE": "MS_WORKER",
        "MS_WORKER_NUM": "4",
        "MS_NODE_ID": "2",
        "RANK_ID": "2",
        "DEVICE_ID": "0",
        "MS_SCHED_HOST": "10.0.0.7",
        "MS_SCHED_PORT": "8118",
    }
    assert launch.adopt_msrun_environment(env)
    assert env["RANK"] == "2"
    assert (env["WORLD_SIZE"], env["LOCAL_RANK"]) == ("4", "0")
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("10.0.0.7", "8119")
    torchrun = {"RANK": "1", "MS_WORKER_NUM": "4", "MS_NODE_ID": "3"}
    assert not launch.adopt_msrun_environment(torchrun)
    assert torchrun["RANK"] == "1"
    with pytest.raises(ValueError, match="outside MS_WORKER_NUM=2"):
        launch.adopt_msrun_environment({"MS_WORKER_NUM": "2", "MS_NODE_ID": "2"})
    with pytest.raises(ValueError, match="cannot know its number"):
        launch.adopt_msrun_environment({"MS_WORKER_NUM": "2"})
    with pytest.raises(SystemExit) as scheduler:
        launch.adopt_msrun_environment({"MS_ROLE": "MS_SCHED", "MS_WORKER_NUM": "2"})
    assert scheduler.value.code == 0


def test_threads_are_shared_by_local_ranks(monkeypatch):
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: set(range(8)))
    assert launch.threads_per_rank({"LOCAL_WORLD_SIZE": "4"}) == 2
    assert launch.threads_per_rank({"LOCAL_WORLD_SIZE": "16"}) == 1
    env = {"LOCAL_WORLD_SIZE": "2"}
    assert launch.set_threads(env) == 4
    assert env["OMP_NUM_THREADS"] == "4"
    assert launch.set_threads({"OMP_NUM_THREADS": "3"}) is None


LAUNCHER = """
import os, subprocess, sys
os.environ |= {"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "1"}
rank = "from mindspeed_ms.config import launch; print(launch.set_threads())"
sys.exit(subprocess.run([sys.executable, "-c", rank]).returncode)
"""


@pytest.mark.parametrize("chosen", [None, "1"])
def test_the_number_that_torchrun_sets_is_not_the_users(chosen):
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if chosen:
        env["OMP_NUM_THREADS"] = chosen
    done = subprocess.run([sys.executable, "-c", LAUNCHER], env=env, capture_output=True, text=True)
    expected = "None" if chosen else str(len(os.sched_getaffinity(0)))
    assert done.stdout.strip() == expected, done.stderr
