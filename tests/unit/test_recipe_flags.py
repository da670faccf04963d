"""The recipe's parser: derived flags, stock names and defaults, and what is said about wrong ones."""

import dataclasses
import subprocess
import sys

import pytest
from recipe_runs import ROOT, environment

REQUIRED = (
    "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --seq-length 64 --max-position-embeddings 64 "
    "--micro-batch-size 2 --train-iters 4 --lr 1e-3 --mock-data --tokenizer-type NullTokenizer --vocab-size 9"
)


@pytest.fixture(scope="module")
def arguments():
    """The recipe's argument module, imported as examples/pretrain_gpt.py sees it."""
    import mindspeed_ms.patch  # noqa: F401 - before Megatron, as the script does

    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from recipe import arguments
    finally:
        sys.path.remove(str(ROOT / "examples"))
    return arguments


def parse(arguments, extra: str = "", base: str = REQUIRED):
    return arguments.parse_args(f"{base} {extra}".split())


def message(arguments, capsys, extra: str, base: str = REQUIRED) -> str:
    with pytest.raises(SystemExit) as error:
        parse(arguments, extra, base)
    assert error.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("--hiden-size", "--hidden-size"),
        ("--lr-warm-up-iters", "--lr-warmup-iters"),
        ("--num-expert", "--num-experts"),
    ],
)
def test_unknown_flag_names_the_nearest(arguments, capsys, wrong, nearest):
    assert message(arguments, capsys, f"{wrong} 3").endswith(
        f"unknown flag {wrong}; the nearest one is {nearest}"
    )


@pytest.mark.parametrize(
    ("flag", "why"),
    [("--use-megatron-fsdp", "--use-distributed-optimizer"), ("--fp8-format hybrid", "Transformer Engine")],
)
def test_flags_that_cannot_be_honoured_say_why(arguments, capsys, flag, why):
    text = message(arguments, capsys, flag)
    assert "not supported by this recipe" in text
    assert why in text


def test_value_of_the_wrong_type(arguments, capsys):
    assert "--num-layers" in message(arguments, capsys, "--num-layers two")


def test_stock_names_reach_the_configs(arguments):
    args = parse(
        arguments,
        "--norm-epsilon 1e-6 --disable-bias-linear --swiglu --normalization RMSNorm --group-query-attention "
        "--num-query-groups 2 --adam-beta2 0.95 --clip-grad 0.5 --bf16 --overlap-grad-reduce "
        "--ddp-bucket-size 77 --attention-backend unfused --moe-layer-freq ([0]*1+[1]) "
        "--no-check-for-nan-in-loss-and-grad",
    )
    model = arguments.transformer_config(args)
    assert (model.layernorm_epsilon, model.add_bias_linear, model.gated_linear_unit) == (1e-6, False, True)
    assert (model.num_query_groups, model.normalization, model.ffn_hidden_size) == (2, "RMSNorm", 128)
    assert model.attention_backend.name == "unfused"
    assert args.moe_layer_freq == [0, 1]
    optimizer = arguments.optimizer_config(args)
    assert (optimizer.adam_beta2, optimizer.clip_grad, optimizer.bf16) == (0.95, 0.5, True)
    ddp = arguments.ddp_config(args, parameters=1000)
    # bf16 reduces gradients in fp32 unless told otherwise, as stock Megatron does.
    assert (ddp.grad_reduce_in_fp32, ddp.bucket_size, ddp.check_for_nan_in_grad) == (True, 77, False)


def test_defaults_are_megatron_lms(arguments):
    args = parse(arguments)
    assert (args.attention_dropout, args.hidden_dropout, args.clip_grad, args.random_seed) == (
        0.1,
        0.1,
        1.0,
        1234,
    )
    assert (args.lr_decay_style, args.adam_beta2, args.weight_decay, args.rotary_base) == (
        "linear",
        0.999,
        0.01,
        10000,
    )
    assert (args.num_query_groups, args.ffn_hidden_size, args.global_batch_size) == (None, 256, 2)


def test_tables_name_fields_that_exist(arguments):
    fields = {
        f.name for config in (*arguments.CONFIGS, *arguments.SETTINGS) for f in dataclasses.fields(config)
    }
    for table in (arguments.NAMES, arguments.DEFAULTS, arguments.TYPES, arguments.SET_BY_RECIPE):
        assert set(table) - fields - {"add_position_embedding", "cp_comm_type"} == set()


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        ("--num-attention-heads 3", "--hidden-size (64) must be a multiple of --num-attention-heads (3)"),
        ("--group-query-attention --num-query-groups 3", "--num-query-groups (3)"),
        ("--global-batch-size 3", "--global-batch-size (3) must be a multiple of"),
        ("--max-position-embeddings 32", "--max-position-embeddings (32) must be at least --seq-length (64)"),
        ("--tensor-model-parallel-size 2", "1 processes cannot be divided"),
        ("--bf16 --fp16", "choose one of --fp16 and --bf16"),
        ("--train-samples 8", "--train-iters and --train-samples"),
        ("--min-lr 1", "--min-lr (1.0) must not be above --lr (0.001)"),
        ("--save somewhere", "--save needs --save-interval"),
        ("--lr-warmup-fraction 0.1 --lr-warmup-iters 2", "--lr-warmup-fraction"),
        ("--recompute-granularity full", "--recompute-method"),
        ("--overlap-param-gather", "--use-distributed-optimizer"),
        ("--seed 0", "--seed must be positive"),
        ("--data-path here", "--mock-data"),
    ],
)
def test_contradictions_are_one_sentence(arguments, extra, part):
    with pytest.raises(arguments.RecipeError) as error:
        parse(arguments, extra)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["__import__('os')", "[1, 'a']", "[1]*", "{}"])
def test_layer_pattern_evaluates_nothing_else(arguments, capsys, text):
    with pytest.raises(SystemExit):
        arguments.parse_args([*REQUIRED.split(), "--moe-layer-freq", text])
    assert "--moe-layer-freq" in capsys.readouterr().err


def test_help_lists_flags_with_their_meaning():
    done = subprocess.run(
        [sys.executable, "-m", "tests.reference.plain_torch", "examples/pretrain_gpt.py", "--help"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    for flag in (
        "--tensor-model-parallel-size",
        "--swiglu",
        "--num-experts",
        "--adam-beta2",
        "--save-interval",
    ):
        assert flag in done.stdout
