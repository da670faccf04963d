"""``mindspeed-ms run`` and ``doctor``, and torch's autoload: processes that switch the bridge on."""

import json
import sys

import pytest
from processes import cli, launch

DEVICES = """
import json, os, sys
import torch
print(json.dumps({
    "name": __name__, "argv": sys.argv, "path": sys.path[0], "file": __file__, "rank": os.environ["RANK"],
    "device": str(torch.zeros(2, device="cuda").device), "patched": "mindspeed_ms.patch" in sys.modules,
}))
"""


def facts(output: str) -> dict:
    return json.loads(next(line for line in output.splitlines() if line.startswith("{")))


@pytest.fixture
def script(tmp_path):
    def write(text: str, name: str = "train.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_script_sees_what_python_would_give_it(script, tmp_path):
    path = script(DEVICES)
    done = cli("run", str(path), "--lr", "1e-3", "--coverage", "mine")
    got = facts(done.stdout)
    assert done.returncode == 0, done.stderr
    assert got["name"] == "__main__"
    assert got["argv"] == [str(path), "--lr", "1e-3", "--coverage", "mine"]
    assert got["path"] == str(tmp_path)
    assert got["file"] == str(path)
    assert got["rank"] == "0"
    assert got["patched"]
    assert got["device"] == "npu:0"


SPAWNS = """
import multiprocessing
import needs_bridge
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Manager() as manager:
        print(manager.list([7])[0], "from the manager")
"""


def test_processes_that_the_script_spawns_have_the_bridge_on(script):
    script("import torch, sys; assert 'mindspeed_ms.patch' in sys.modules", "needs_bridge.py")
    done = cli("run", str(script(SPAWNS)))
    assert "7 from the manager" in done.stdout, done.stderr


# As in a notebook: nothing that a spawned process imports of the script switches the bridge on.
LIBRARY = """
import multiprocessing
import sys

def where(told):
    before = sorted({"torch", "mindspeed_ms.patch"} & set(sys.modules))
    import torch
    told.put((before, str(torch.zeros(2, device="cuda").device), torch.cuda.device_count()))

if __name__ == "__main__":
    import mindspeed_ms.patch
    for method in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["torch"])
        told = context.Queue()
        process = context.Process(target=where, args=(told,))
        process.start()
        print(method, *told.get(timeout=60), sep="|")
        process.join()
"""


def test_processes_that_a_bridged_process_starts_have_the_bridge(script):
    done = launch(sys.executable, str(script(LIBRARY)), LOCAL_WORLD_SIZE="3")
    assert set(done.stdout.splitlines()) == {
        "fork|['mindspeed_ms.patch', 'torch']|npu:0|3",
        "spawn|[]|npu:0|3",
        "forkserver|['mindspeed_ms.patch', 'torch']|npu:0|3",
    }, done.stderr


TOLD_LATER = """
import multiprocessing
import os

def rank(told):
    import torch
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    torch.cuda.set_device(1)
    told.put((str(torch.zeros(2, device="cuda").device), torch.cuda.device_count()))

if __name__ == "__main__":
    import mindspeed_ms.patch
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    context.Process(target=rank, args=(told,), daemon=True).start()
    print(*told.get(timeout=60))
"""


def test_a_spawned_rank_counts_the_ranks_that_it_is_told_of_before_it_uses_its_device(script):
    assert launch(sys.executable, str(script(TOLD_LATER))).stdout == "npu:1 2\n"


def test_modules_beside_the_script_are_found(script):
    script("VALUE = 7", "sibling.py")
    done = cli("run", str(script("import sibling; print(sibling.VALUE)")))
    assert done.stdout.split()[-1] == "7", done.stderr


@pytest.mark.parametrize(("ending", "status"), [("raise SystemExit(5)", 5), ("1 / 0", 1), ("", 0)])
def test_exit_status_passes_through(script, ending, status):
    done = cli("run", str(script(ending)))
    assert done.returncode == status
    assert ("ZeroDivisionError" in done.stderr) == (ending == "1 / 0")


def test_log_dir_holds_both_streams_also_of_a_crash(script, tmp_path):
    path = script("import os, sys; print('out'); os.write(2, b'native\\n'); sys.exit('told why')")
    done = cli("run", "--log-dir", str(tmp_path / "logs"), str(path))
    log = (tmp_path / "logs/rank0.log").read_text()
    assert done.returncode == 1
    for word in ("out", "native", "told why"):
        assert word in log
        assert word in done.stdout + done.stderr
    path = script("import os, signal; print('last words', flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    cli("run", "--log-dir", str(tmp_path / "killed"), str(path))
    assert "last words" in (tmp_path / "killed/rank0.log").read_text()


@pytest.mark.distributed
def test_under_torchrun(script, tmp_path):
    run = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mindspeed_ms.run")
    path = script(DEVICES)
    options = ("--log-dir", str(tmp_path / "logs"), "--coverage", str(tmp_path / "coverage.json"))
    done = launch(sys.executable, *run, *options, str(path), "--x")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.glob("*.json")} == {"coverage.json", "coverage.rank1.json"}
    for rank in ("0", "1"):
        got = facts((tmp_path / f"logs/rank{rank}.log").read_text())
        assert got["rank"] == rank
        assert got["argv"] == [str(path), "--x"]
        assert got["patched"]


@pytest.mark.parametrize("switch", ["1", "0"])
def test_autoload_by_environment(script, switch):
    path = script(
        DEVICES.replace('torch.zeros(2, device="cuda").device', '"mindspeed_ms.patch" in sys.modules')
    )
    done = launch(sys.executable, str(path), MINDSPEED_MS_AUTOLOAD=switch, RANK="0")
    assert facts(done.stdout)["patched"] == (switch == "1"), done.stderr


def test_run_writes_what_coverage_reads(script, tmp_path):
    report = tmp_path / "coverage.json"
    path = script("import torch; a = torch.ones(64, 64, device='cuda'); [a @ a for _ in range(3)]; 1 / 0")
    cli("run", "--coverage", str(report), str(path))
    written = json.loads(report.read_text())
    rows = written["rows"]
    assert written["wall_seconds"] > sum(row["seconds"] for row in rows)
    assert sum(row["calls"] for row in rows if row["op"].split(".")[0] == "aten::mm") == 3
    assert "operator time on MindSpore + csrc" in cli("coverage", str(report)).stdout


def test_doctor_says_what_to_do(tmp_path):
    info = tmp_path / "numpy-2.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.1.0\n")
    done = cli("doctor", OMP_NUM_THREADS="2", LOCAL_WORLD_SIZE="64", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "pip install 'numpy<2'" in done.stdout
    assert "set OMP_NUM_THREADS=" in done.stdout


def test_doctor_finds_this_machine_well():
    done = cli("doctor", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all is well" in done.stdout
    assert "96x96 matmul on npu" in done.stdout
