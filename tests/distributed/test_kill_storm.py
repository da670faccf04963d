"""A short storm of kills: the ranks that are left end, nothing stays behind, the checkpoints can be read."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import segments
from mindspeed_ms import _native

ROOT = Path(__file__).resolve().parents[2]


def storm(folder: Path, *options: str) -> tuple[subprocess.CompletedProcess, dict[str, dict]]:
    """The process and its marks, each by the words after "0"."""
    file = folder / "storm.json"
    command = [sys.executable, "-m", "tests.benchmarks.kill_storm", "--quick", "--json", str(file), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert file.exists(), f"{done.stdout}{done.stderr}"[-6000:]
    return done, {mark["mark"].removeprefix("0 "): mark for mark in json.loads(file.read_text())["marks"]}


@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_few_kills(tmp_path):
    done, marks = storm(tmp_path, "--kills", "3")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"[-6000:]
    assert {name: mark["measured"] for name, mark in marks.items()} == dict.fromkeys(marks, "0")
    assert {"orphaned processes", "leaked segments"} < set(marks)


@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_what_stays_behind_is_counted(tmp_path):
    done, marks = storm(tmp_path, "--kills", "1", "--leave-behind")
    assert done.returncode == 1, f"{done.stdout}{done.stderr}"[-6000:]
    assert {name for name, mark in marks.items() if not mark["met"]} == {
        "leaked segments",
        "orphaned processes",
    }


def hold(how, connection):
    """Holds one segment, only mapped or only open, until it is killed."""
    segment = _native.comm.Segment.create(2, 65536, 4, "nonce")
    kept = os.dup(segment.descriptor)
    if how == "mapped":
        os.close(kept)
        os.close(segment.descriptor)
    else:
        del segment
    connection.send(os.getpid())
    signal.pause()


@pytest.mark.parametrize("how", ["mapped", "open"])
def test_a_held_segment_is_seen_while_its_holder_lives(how):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    holder = context.Process(target=hold, args=(how, theirs))
    holder.start()
    try:
        assert ours.poll(60)
        process = ours.recv()
        found = segments.held([process])
        assert len(found) == 1
        (inode,) = found
        assert segments.held()[inode] == {process}
        assert process in segments.descendants(os.getpid())
    finally:
        holder.kill()
        holder.join()
    assert inode not in segments.held()
