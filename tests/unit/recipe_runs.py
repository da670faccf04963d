"""Runs the recipe in processes of its own, on a small corpus, for the tests of the recipe."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = ROOT / "examples" / "pretrain_gpt.py"
PREPARE = ROOT / "examples" / "prepare_data.py"
TIMEOUT_SECONDS = 240
# A model that trains in seconds; tests replace or add flags, the last one given wins.
MODEL = shlex.split(
    "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --seq-length 64 --max-position-embeddings 64 "
    "--micro-batch-size 2 --global-batch-size 4 --train-iters 6 --lr 1e-3 --min-lr 1e-4 "
    "--lr-decay-style cosine --split 90,5,5 --log-interval 1 --eval-iters 0 --num-workers 0 --save-interval 3"
)


# What turns MODEL into a Llama with experts; it meets every operator that a GPT of ours can meet.
LLAMA = shlex.split(
    "--swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear --num-experts 4 "
    "--group-query-attention --num-query-groups 2 --untie-embeddings-and-output-weights "
    "--moe-router-topk 2 --moe-aux-loss-coeff 1e-2 --moe-token-dispatcher-type alltoall"
)


def without_data() -> list[str]:
    """Flags of a run on Megatron's made-up data."""
    return [*MODEL, "--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", "127"]


def environment() -> dict[str, str]:
    """One thread a process, so that runs repeat exactly and do not disturb each other."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


@dataclass
class Done:
    """A run that ended: exit code and what it printed."""

    code: int
    out: str
    err: str

    def success(self) -> str:
        """What it printed; the run must have succeeded."""
        assert self.code == 0, f"{self.out}{self.err}"[-4000:]
        return self.out

    def error(self) -> str:
        """The one sentence, without a traceback, with which the recipe must have failed."""
        assert self.code in (1, 2), f"{self.out}{self.err}"[-4000:]
        assert "Traceback" not in self.err, self.err[-4000:]
        start = "pretrain_gpt.py: error: "
        sentences = [line for line in self.err.splitlines() if line.startswith(start)]
        assert len(sentences) == 1, self.err[-4000:]
        return sentences[0].removeprefix(start)


class PlainRuns:
    """Runs scripts on plain torch, alone, through tests/reference/fork_server.py."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.reference.fork_server"],
            env=environment(),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, flags: list[str], script: Path = PRETRAIN) -> Done:
        """Runs to the end; a run that takes longer than TIMEOUT_SECONDS is killed."""
        files = {name: str(self._folder / name) for name in ("stdout", "stderr")}
        job = {"script": str(script), "args": flags, **files}
        print(json.dumps(job), file=self._server.stdin, flush=True)
        process = int(self._server.stdout.readline())
        killer = threading.Timer(TIMEOUT_SECONDS, os.kill, (process, signal.SIGKILL))
        killer.start()
        try:
            code = int(self._server.stdout.readline())
        finally:
            killer.cancel()
        return Done(code, *(Path(file).read_text() for file in files.values()))

    def close(self) -> None:
        """Ends the server."""
        self._server.stdin.close()
        self._server.wait(timeout=TIMEOUT_SECONDS)


def command(
    script: Path, flags: list[str], processes: int = 1, plain: bool = True, launcher: bool = False
) -> list[str]:
    """Command that runs `script`: on plain torch or with the bridge, alone or (`launcher`) under torchrun."""
    start = [sys.executable]
    if processes > 1 or launcher:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    runner = ["-m", "tests.reference.plain_torch", str(script)] if plain else [str(script)]
    return [*start, *runner, *flags]


def run(flags: list[str], script: Path = PRETRAIN, **how: Any) -> Done:
    """Runs `command` (whose other arguments are `how`) to its end."""
    done = subprocess.run(
        command(script, flags, **how),
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def losses(folder: Path) -> list[tuple[int, float]]:
    """(iteration, loss) of a finished run, from its loss.json."""
    return [(iteration, loss) for iteration, loss in json.loads((folder / "loss.json").read_text())["train"]]
