"""Starts a training script in processes of its own: PRETRAIN, or one of a Megatron-LM checkout, not edited.

Four ways to start it, all of the README: see WAYS.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = ROOT / "examples" / "pretrain_gpt.py"
"""The project's own: Megatron's trainer, as its wheel has it."""

WAYS = ("run", "torchrun", "autoload", "import")
"""``mindspeed-ms run SCRIPT``; ``torchrun -m mindspeed_ms.run SCRIPT``; ``torchrun SCRIPT`` with
MINDSPEED_MS_AUTOLOAD=1; ``torchrun`` of a copy of the script that begins with ``import mindspeed_ms.patch``.
"""

MODEL = shlex.split(
    "--num-layers 4 --hidden-size 128 --num-attention-heads 4 --seq-length 128 --max-position-embeddings 128 "
    "--micro-batch-size 2 --global-batch-size 8 --lr 1e-3 --min-lr 1e-4 --lr-decay-style cosine "
    "--lr-warmup-iters 2 --lr-decay-iters 20 --weight-decay 0.01 --clip-grad 1.0 --seed 1234 "
    "--attention-dropout 0.0 --hidden-dropout 0.0 --split 90,5,5 --num-workers 0 --use-cpu-initialization "
    "--log-interval 1 --eval-interval 100 --eval-iters 0"
)
"""A GPT that trains in seconds; flags given after it win. Train iterations and data are still missing."""
MOCK = shlex.split("--mock-data --tokenizer-type NullTokenizer --vocab-size 1023")

PLAIN = "plain torch"
"""Not with us, but by tests/reference/plain_torch.py."""
PLAIN_FLAGS = ("--transformer-impl", "local", "--no-rope-fusion", "--distributed-backend", "gloo")
"""What plain torch needs: without Transformer Engine, whose names this package provides, and its kernels."""
AVERAGED = 2
"""This line of a run shows the mean of two losses (:func:`losses`): a resumed run is not compared there."""

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOSS = re.compile(r"iteration +(\d+)/.*\| lm loss: ([-+.\dEe]+|nan) \|")
_ERROR = re.compile(r"^(\[rank\d+\]: ?)?[\w.]*(Error|Exception)\b")


@dataclass(frozen=True)
class Run:
    """A run that ended. ``losses``: iteration -> loss as printed; ``error``: "" or why it failed."""

    losses: dict[int, float]
    error: str
    output: str


def command(
    script: Path, flags: Sequence[str], ranks: int, way: str, folder: Path
) -> tuple[list[str], dict[str, str]]:
    """Command line and environment variables that start ``script``; "import" writes a copy to ``folder``."""
    if way == "run":
        if ranks != 1:
            raise ValueError(f"mindspeed-ms run starts one process, not {ranks}: use torchrun")
        return [sys.executable, "-m", "mindspeed_ms", "run", str(script), *flags], {}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    if way == "torchrun":
        return [*torchrun, "-m", "mindspeed_ms.run", str(script), *flags], {}
    if way == "autoload":
        return [*torchrun, str(script), *flags], {"MINDSPEED_MS_AUTOLOAD": "1"}
    beside = ROOT if way == PLAIN else script.parent
    path = {"PYTHONPATH": os.pathsep.join(filter(None, (str(beside), os.environ.get("PYTHONPATH"))))}
    if way == PLAIN:
        return [*torchrun, "-m", "tests.reference.plain_torch", str(script), *flags], path
    copy = folder / script.name
    copy.write_text("import mindspeed_ms.patch\n" + script.read_text())
    return [*torchrun, str(copy), *flags], path


def train(
    script: Path,
    flags: Sequence[str],
    folder: Path,
    *,
    ranks: int = 1,
    way: str = "torchrun",
    timeout: float = 300,
    **variables: str,
) -> Run:
    """Run ``script`` in ``folder``, one thread a process; ``variables`` are added to the environment."""
    words, added = command(script, flags, ranks, way, folder)
    clean = {name: value for name, value in os.environ.items() if name not in _LAUNCHER}
    # Megatron wants this with tensor parallelism, and says so before the package is asked.
    usual = {"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    environment = {**usual, **clean, **added, **variables}
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        cwd=folder,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its ranks, which are in sessions of their own
        output, _ = process.communicate(timeout=60)
        return Run(losses(output), f"no end after {timeout:.0f} s", output)
    error = ""
    if process.returncode:
        lines = output.splitlines()
        said = [line for line in lines if _ERROR.match(line)] or lines or ["no output"]
        error = f"exit status {process.returncode}: {said[0 if _ERROR.match(said[0]) else -1]}"
    return Run(losses(output), error, output)


def prepare_data(folder: Path, vocab_size: int = 4096, *flags: str) -> str:
    """Has examples/prepare_data.py write ``folder`` (once); returns what it printed."""
    command = [sys.executable, str(PRETRAIN.with_name("prepare_data.py")), "--output-dir", str(folder)]
    command += ["--vocab-size", str(vocab_size), *flags]
    return subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=600
    ).stdout


def data_flags(folder: Path) -> list[str]:
    """Flags for what :func:`prepare_data` wrote to ``folder``."""
    data = ["--data-path", f"{folder}/stdlib", "--no-create-attention-mask-in-dataloader"]
    return [*data, "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", f"{folder}/tokenizer"]


def recipe(name: str, **variables: str) -> list[str]:
    """The command that ``examples/NAME.sh`` starts with these environment variables."""
    done = subprocess.run(
        [str(PRETRAIN.with_name(f"{name}.sh"))],
        env={**os.environ, "PRINT": "1", **variables},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    return shlex.split(done.stdout)


def flags_of(command: Sequence[str]) -> list[str]:
    """What such a command hands to the script."""
    return list(command[command.index(str(PRETRAIN)) + 1 :])


def checkout_of(tag: str, megatron_lm_path: Path, folder: Path) -> Path | None:
    """The files of ``tag``: a folder of that name beside the checkout, or unpacked from it into ``folder``.

    None where there is neither.
    """
    beside = megatron_lm_path.resolve().parent / tag
    if beside.is_dir():
        return beside
    git = ["git", "-C", str(megatron_lm_path)]
    if subprocess.run([*git, "rev-parse", "-q", "--verify", tag], capture_output=True).returncode:
        return None
    tree = folder / "Megatron-LM"
    tree.mkdir()
    archive = subprocess.run([*git, "archive", tag], capture_output=True, check=True, timeout=60)
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True, timeout=60)
    return tree


def losses(output: str) -> dict[int, float]:
    """Iteration -> training loss, as printed.

    From 0.16 on the second line of a run is the mean of the first two losses: Megatron prints the first one
    without forgetting it.
    """
    return {int(iteration): float(loss) for iteration, loss in _LOSS.findall(output)}


def deviation(measured: dict[int, float], expected: dict[int, float]) -> float:
    """Largest relative difference over the iterations expected; infinite if one is missing or nan."""
    if not expected or not expected.keys() <= measured.keys():
        return float("inf")
    pairs = [(measured[i], expected[i]) for i in expected]
    if any(a != a for a, _ in pairs):
        return float("inf")
    return max(abs(a - b) / abs(b) for a, b in pairs)
