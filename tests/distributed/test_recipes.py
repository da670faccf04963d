"""The small sizes of the recipes train to the losses of plain torch, here on fewer and shorter sequences."""

import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.reference import stock_script  # noqa: E402
from tests.reference.stock_script import PLAIN, PLAIN_FLAGS, flags_of, prepare_data, recipe  # noqa: E402

SHORT = shlex.split(
    "--train-iters 3 --log-interval 1 --eval-iters 0 --seq-length 64 --global-batch-size 4 "
    "--micro-batch-size 2 --attention-dropout 0 --hidden-dropout 0 --use-cpu-initialization"
)
GROUPED = {"--moe-grouped-gemm", "--moe-permute-fusion"}
ALONE = ("gpt2", "llama3", "qwen3", "mixtral", "qwen3_moe", "deepseek_v3")
ALWAYS = {"qwen3", "deepseek_v3"}  # what the others have is also in these, or in the tests of strategies


@pytest.fixture(scope="module")
def train(pretrain, tmp_path_factory):
    """Trains with flags where recipes look for their data; iteration -> loss."""
    folder = tmp_path_factory.mktemp("recipes")
    prepare_data(folder / "runs" / "data")

    def losses(flags: list[str], **how) -> dict[int, float]:
        run = stock_script.train(pretrain, flags, folder, **how)
        assert list(run.losses) == [1, 2, 3], f"{run.error}\n{run.output[-3000:]}"
        return run.losses

    return losses


@pytest.mark.distributed
@pytest.mark.parametrize(
    "name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in ALONE]
)
def test_small_recipe_trains_as_plain_torch(name, train, tmp_path):
    flags = [*flags_of(recipe(name)), *SHORT]
    # Grouped experts draw their weights in another order than single ones, which is all that plain torch has.
    single = [flag for flag in flags if flag not in GROUPED]
    run, plain = train([*single, "--save", str(tmp_path)]), train([*single, *PLAIN_FLAGS], way=PLAIN)
    assert run == pytest.approx(plain, rel=1e-6)
    if single != flags:
        loaded = ["--load", str(tmp_path), "--finetune"]
        assert train([*flags, *loaded]) == pytest.approx(train([*single, *loaded]), rel=1e-6)


@pytest.mark.slow
@pytest.mark.distributed
def test_long_context_on_two_ranks_trains_as_plain_torch_on_one(train):
    flags = [*flags_of(recipe("long_context")), *SHORT, "--seq-length", "128"]
    # Plain torch has no ring attention.
    plain = train([*flags, "--context-parallel-size", "1", *PLAIN_FLAGS], way=PLAIN)
    assert train(flags, ranks=2) == pytest.approx(plain, rel=1e-6)


@pytest.mark.slow
@pytest.mark.distributed
def test_fsdp_on_two_ranks_trains_as_plain_torch_unsharded_on_one(train):
    # Weights made on each device would come from other generators than the CPU's.
    flags = [flag for flag in flags_of(recipe("fsdp")) if flag != "--init-model-with-meta-device"]
    plain = train([*flags_of(recipe("llama3")), *SHORT, *PLAIN_FLAGS], way=PLAIN)
    run = train([*flags, *SHORT], ranks=2, CUDA_DEVICE_MAX_CONNECTIONS="8")
    assert run == pytest.approx(plain, rel=1e-6)


@pytest.mark.distributed
def test_hybrid_trains_alike_on_its_kernels_and_on_torch_alone(train):
    # Plain torch has no Mamba layers: Megatron takes them from a package of CUDA kernels.
    flags = [*flags_of(recipe("hybrid")), *SHORT]
    assert train(flags) == pytest.approx(train(flags, MINDSPEED_MS_ROUTE="host"), rel=1e-6)


@pytest.mark.slow
@pytest.mark.distributed
def test_fine_tuning_takes_the_weights_alone(train, tmp_path):
    first = train([*flags_of(recipe("llama3")), *SHORT, "--save", str(tmp_path)])
    flags = [*flags_of(recipe("finetune", LOAD=str(tmp_path))), *SHORT]
    tuned = train(flags)
    assert tuned == pytest.approx(train([*flags, *PLAIN_FLAGS], way=PLAIN), rel=1e-6)
    assert tuned[1] < first[1]
