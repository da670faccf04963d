"""The simulated HCCL: values of every call, and what becomes of schedules that a chip never finishes."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .run import REPOSITORY, environment

Ranks = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def on_ranks(cann_root: Path, tmp_path: Path) -> Ranks:
    """Runs a case of ``on_device/hccl_ranks.py`` on two ranks; returns what each printed."""

    def run(case: str, **options: object) -> list[dict[str, Any]]:
        env = {**environment(cann_root, **options), "CANNSIM_HCCL_TIMEOUT": "3"}
        folder = tempfile.mkdtemp(dir=tmp_path)
        script = Path(__file__).parent / "on_device" / "hccl_ranks.py"
        ranks = [
            subprocess.Popen(
                [sys.executable, str(script), case, str(rank), "2", folder],
                **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
                env=env,
                cwd=REPOSITORY,
            )
            for rank in range(2)
        ]
        texts = [rank.communicate(timeout=60) for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], texts
        return [json.loads(out) for out, _ in texts]

    return run


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_collectives(on_ranks: Ranks, asynchronous: bool) -> None:
    zero, one = on_ranks("collectives", asynchronous=asynchronous)
    assert zero["HcclAllReduce"] == one["HcclAllReduce"] == [10, 12]
    assert one["HcclReduce"] == [10, 12]
    assert zero["HcclAllGather"] == one["HcclAllGather"] == [0, 1, 10, 11]
    assert (zero["HcclReduceScatter"], one["HcclReduceScatter"]) == ([10, 12], [14, 16])
    assert (zero["HcclScatter"], one["HcclScatter"]) == ([0, 1], [2, 3])
    assert (zero["HcclAlltoAll"], one["HcclAlltoAll"]) == ([0, 1, 10, 11], [2, 3, 12, 13])
    assert zero["HcclBroadcast"] == one["HcclBroadcast"] == [10, 11]
    assert zero["HcclAllGatherV"] == one["HcclAllGatherV"] == [0, 10, 11, 12]
    assert (zero["HcclReduceScatterV"], one["HcclReduceScatterV"]) == ([10], [12, 14, 16])
    for name in ("HcclAlltoAllV", "HcclAlltoAllVC"):
        assert (zero[name], one[name]) == ([0, 10, 11], [1, 2, 3])


def test_a_batch_of_sends_and_receives_does_not_deadlock(on_ranks: Ranks) -> None:
    assert on_ranks("ring_in_one_batch") == [{"received": [10, 11]}, {"received": [0, 1]}]


def test_messages_of_a_pair_keep_their_order(on_ranks: Ranks) -> None:
    assert on_ranks("in_order")[1] == {"received": [0, 1, 0, 2]}


def test_two_sends_that_wait_for_each_other_are_reported_with_both_calls(on_ranks: Ranks) -> None:
    for result in on_ranks("both_send_first"):
        assert "deadlock" in result["error"]
        assert "HcclSend(2 x fp32 to rank 0)" in result["error"]
        assert "HcclSend(2 x fp32 to rank 1)" in result["error"]


def test_collectives_that_differ_are_reported_with_both_calls(on_ranks: Ranks) -> None:
    for result in on_ranks("different_calls"):
        assert "mismatch" in result["error"]
        assert "HcclAllReduce(2 x fp32, op 0)" in result["error"]
        assert "HcclAllReduce(1 x fp32, op 0)" in result["error"]


def test_unequal_counts_of_an_all_to_all_are_reported(on_ranks: Ranks) -> None:
    assert "rank 0 sends 1 elements to rank 1, which expects 2" in on_ranks("unequal_counts")[1]["error"]


@pytest.mark.parametrize("case", ["lost_peer", "lost_peer_in_another_stream"])
def test_a_lost_peer_is_named(on_ranks: Ranks, case: str) -> None:
    assert "rank 1 is gone" in on_ranks(case)[0]["error"]


def test_float64_is_not_reduced(on_ranks: Ranks) -> None:
    assert all("no reduction of fp64" in result["error"] for result in on_ranks("no_float64"))


def test_swapped_ranks_is_a_fault_that_shows(on_ranks: Ranks) -> None:
    assert on_ranks("all_gather", fault="swapped_ranks")[0] == {"gathered": [10, 0]}


def test_no_segment_is_left_behind(on_ranks: Ranks) -> None:
    before = set(Path("/dev/shm").glob("npusim_*"))
    on_ranks("ring_in_one_batch")
    on_ranks("collectives")
    assert set(Path("/dev/shm").glob("npusim_*")) <= before
