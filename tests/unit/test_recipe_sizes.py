"""The full sizes of the recipes: Megatron takes their flags, the models are the published ones.

The numbers of parameters are those of the published checkpoints (safetensors' index of each on Hugging Face,
without duplicates of tied embeddings and router biases), the hybrid's is the sum of its parts.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import mindspeed_ms.patch  # noqa: F401 - before Megatron
import pytest
from megatron.core import package_info

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.reference import stock_script  # noqa: E402

# recipe, size, cards, vocabulary, parameters
SIZES = [
    ("gpt2", "124m", 8, 50257, 124_439_808),
    ("gpt2", "1.5b", 32, 50257, 1_557_611_200),
    ("llama3", "8b", 8, 128256, 8_030_261_248),
    ("llama3", "70b", 128, 128256, 70_553_706_496),
    ("llama3", "405b", 1024, 128256, 405_853_388_800),
    ("qwen3", "0.6b", 8, 151936, 596_049_920),
    ("qwen3", "8b", 16, 151936, 8_190_735_360),
    ("qwen3", "32b", 64, 151936, 32_762_123_264),
    ("mixtral", "8x7b", 64, 32000, 46_702_792_704),
    ("mixtral", "8x22b", 128, 32000, 140_620_634_112),
    ("qwen3_moe", "30b-a3b", 32, 151936, 30_532_122_624),
    ("qwen3_moe", "235b-a22b", 256, 151936, 235_093_634_560),
    ("deepseek_v3", "671b", 1024, 129280, 671_026_404_352),
    ("hybrid", "8b", 32, 256000, 8_654_517_248),
    ("long_context", "8b", 64, 128256, 8_030_261_248),
    ("long_context", "70b", 512, 128256, 70_553_706_496),
    ("fsdp", "8b", 8, 128256, 8_030_261_248),
    ("fsdp", "70b", 128, 128256, 70_553_706_496),
    ("finetune", "8b", 8, 128256, 8_030_261_248),
]
PLAIN = {("gpt2", "124m"), ("deepseek_v3", "671b")}


@pytest.mark.parametrize(
    ("recipe", "size", "cards", "vocabulary", "parameters"),
    [pytest.param(*row, marks=() if row[:2] in PLAIN else pytest.mark.slow) for row in SIZES],
)
def test_full_size_is_the_published_model(recipe, size, cards, vocabulary, parameters):
    if (package_info.MAJOR, package_info.MINOR) < (0, 19):
        pytest.skip(f"Megatron-Core {package_info.__version__} has no trainer to check flags with")
    command = stock_script.recipe(
        recipe, SIZE=size, DATA_PATH="data", TOKENIZER_MODEL="tokenizer", LOAD="checkpoints"
    )
    nodes, processes = (int(command[command.index(f"--{word}") + 1]) for word in ("nnodes", "nproc-per-node"))
    assert nodes * processes == cards
    # One number is missing where the tokenizer is: the vocabulary.
    words = [
        *stock_script.flags_of(command),
        "--tokenizer-type",
        "NullTokenizer",
        "--vocab-size",
        str(vocabulary),
    ]
    words += ["--mtp-num-layers", "0"] if recipe == "deepseek_v3" else []
    connections = "8" if recipe == "fsdp" else "1"
    done = subprocess.run(
        [sys.executable, "-m", "tests.conformance.recipe_parameters", *words],
        env={**os.environ, "WORLD_SIZE": str(cards), "RANK": "0", "CUDA_DEVICE_MAX_CONNECTIONS": connections},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(re.search(r"parameters: (\d+)", done.stdout)[1]) == parameters


@pytest.mark.parametrize(
    ("name", "variables", "sentence"),
    [
        ("long_context", {"SIZE": "405b", "LOAD": "x"}, "no size '405b'"),
        ("fsdp", {"SIZE": "405b"}, "no size '405b'"),
        ("qwen3", {"SIZE": "7b"}, "no size '7b'"),
        ("llama3", {"SIZE": "8b", "NPROC": "3"}, "8 cards are not nodes of NPROC=3"),
        ("llama3", {"SIZE": "8b", "DATA_PATH": ""}, "DATA_PATH is to name"),
    ],
)
def test_what_a_recipe_cannot_do_is_one_sentence(name, variables, sentence):
    named = {"PRINT": "1", "DATA_PATH": "data", "TOKENIZER_MODEL": "here", **variables}
    script = ROOT / "examples" / f"{name}.sh"
    done = subprocess.run([script], env={**os.environ, **named}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert sentence in done.stderr.splitlines()[-1]
    assert done.stdout == ""
