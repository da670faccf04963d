"""What limits the exchange between ranks: the memory that is left, and whether others may open it."""

import pytest
from mindspeed_ms.comm import limits

MACHINE = 8 << 30


def tree(root, groups, files):
    """A machine with 8 GiB left, whose process is in `groups`; `files`: path below /sys/fs/cgroup -> text."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: 99 kB\nMemAvailable:  {MACHINE >> 10} kB\nHugePages_Total: 0\n"
    )
    (root / "proc/self/cgroup").write_text(groups)
    for path, text in files.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def second(folder, limit, used=0, cache=0):
    return {
        f"{folder}memory.max": f"{limit}\n",
        f"{folder}memory.current": f"{used}\n",
        f"{folder}memory.stat": f"anon 5\ninactive_file {cache}\n",
    }


def first(folder, limit, used, cache):
    return {
        f"memory/{folder}memory.limit_in_bytes": f"{limit}\n",
        f"memory/{folder}memory.usage_in_bytes": f"{used}\n",
        f"memory/{folder}memory.stat": f"inactive_file 1\ntotal_inactive_file {cache}\n",
    }


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param("0::/\n", {}, (MACHINE, "machine"), id="no group"),
        pytest.param("0::/a/b\n", second("a/b/", "max"), (MACHINE, "machine"), id="a group without limit"),
        pytest.param("0::/a/b\n", second("a/b/", 900, 500, 100), (500, "control group"), id="version 2"),
        pytest.param(
            "0::/a/b\n",
            second("a/b/", 900, 0) | second("a/", 800, 500),
            (300, "control group"),
            id="outer group",
        ),
        pytest.param(
            "0::/of/host\n", second("", 900, 500), (400, "control group"), id="container's own root"
        ),
        pytest.param(
            "4:memory:/x\n1:cpu,cpuacct:/x\n0::/\n",
            first("x/", 700, 600, 50),
            (150, "control group"),
            id="version 1",
        ),
    ],
)
def test_memory_left_is_that_of_the_narrowest(tmp_path, groups, files, expected):
    assert limits.memory_left(tree(tmp_path, groups, files)) == expected


def test_this_machine_has_memory_left():
    left, _ = limits.memory_left()
    assert left > limits.segment(2).nbytes


def test_memory_is_opened_by_another_process_while_it_is_there():
    segment = limits.segment(2)
    path = segment.path
    assert limits.can_be_opened(path)
    del segment
    assert not limits.can_be_opened(path)
