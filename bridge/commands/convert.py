"""``mindspeed-ms convert SOURCE TARGET``: a Hugging Face folder to Megatron's ``torch_dist``, or back.

A stock ``pretrain_gpt.py`` does it, on the CPU and one rank, without gradients or an optimizer: host memory
holds the model once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from mindspeed_ms.commands.errors import CommandError

HELP = "a Hugging Face folder to a torch_dist checkpoint of Megatron, or back"
PREFIX = "hf:"

_FLAGS = [
    *(
        "--skip-train",
        "--train-iters",
        "1",
        "--lr",
        "0",
        "--micro-batch-size",
        "1",
        "--global-batch-size",
        "1",
    ),
    *("--seq-length", "8", "--mock-data", "--tokenizer-type", "NullTokenizer", "--finetune"),
    *("--no-save-optim", "--no-save-rng", "--no-load-optim", "--no-load-rng"),
    *("--ckpt-convert-format", "torch_dist"),
]
_PRECISION = {"bfloat16": ["--bf16"], "float16": ["--fp16"]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``convert``."""
    parser.add_argument("source", help="hf:DIR, or a folder of Megatron's checkpoints")
    parser.add_argument("target", help="a new folder; hf:DIR for a Hugging Face folder")
    parser.add_argument("--model", metavar="DIR", help="to hf:DIR: the Hugging Face folder the model is of")
    parser.add_argument(
        "--megatron-lm-path",
        type=Path,
        metavar="DIR",
        default=os.environ.get("MEGATRON_LM_PATH"),
        help="a checkout of Megatron-LM (default: MEGATRON_LM_PATH)",
    )


def execute(options: argparse.Namespace) -> int:
    """Convert, and give the result its name when it is whole. Raises CommandError for what is not so."""
    out = options.target.startswith(PREFIX)
    if out == options.source.startswith(PREFIX):
        raise CommandError(f"one of {options.source} and {options.target} has to be {PREFIX}DIR")
    if out and options.model is None:
        raise CommandError(f"{options.target} needs --model DIR: the Hugging Face folder the model is of")
    if out and not (Path(options.source) / "latest_checkpointed_iteration.txt").is_file():
        raise CommandError(
            f"{options.source} has no latest_checkpointed_iteration.txt: name the folder that --save named, "
            "not one of its iterations"
        )
    script = Path(options.megatron_lm_path or ".") / "pretrain_gpt.py"
    if not script.is_file():
        raise CommandError(f"{script} does not exist: name a checkout by --megatron-lm-path")
    target = Path(options.target.removeprefix(PREFIX)).absolute()
    if target.exists():
        raise CommandError(f"{target} exists: name a new folder, or remove it")
    model = Path((options.model if out else options.source).removeprefix(PREFIX)).absolute()
    load = ["--load", options.source, "--pretrained-checkpoint", f"{PREFIX}{model}"]
    work = target.parent / f".{target.name}.converting"
    shutil.rmtree(work, ignore_errors=True)
    save = ["--ckpt-convert-save", f"{PREFIX if out else ''}{work}"]
    flags = [*_FLAGS, *(load if out else ["--load", f"{PREFIX}{model}"]), *save, *_precision(model)]
    path = os.pathsep.join(filter(None, (str(script.parent.absolute()), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "mindspeed_ms", "run", str(script.absolute()), *flags]
    try:
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path})
        made = work / "torch_dist"
        if done.returncode or not made.is_dir():
            raise CommandError(f"nothing was converted: pretrain_gpt.py ended with status {done.returncode}")
        (next(made.glob("iter_*")) if out else made).rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"converted {options.source} to {options.target}")
    return 0


def _precision(model: Path) -> list[str]:
    """Megatron's flag for the dtype that config.json names."""
    from mindspeed_ms.hf.config import Config

    config = Config.read(model)
    return _PRECISION.get(config.get("dtype", config.get("torch_dtype")), [])
