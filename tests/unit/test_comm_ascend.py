"""The Ascend engine's calls fit the signatures of the installed MindSpore."""

import ast
import inspect
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from mindspeed_ms.comm.ascend import AscendEngine, issue
from mindspeed_ms.comm.engine import KINDS, Call

SOURCE = Path(str(distribution("mindspore").locate_file("mindspore/mint/distributed/distributed.py")))
RANKS = (4, 5, 6)


def signatures() -> dict[str, inspect.Signature]:
    """Function -> signature, read from MindSpore's source, which needs no import of MindSpore."""
    found = {}
    for node in ast.parse(SOURCE.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names = [a.arg for a in node.args.args]
            required = len(names) - len(node.args.defaults)
            found[node.name] = inspect.Signature(
                [
                    inspect.Parameter(
                        name,
                        inspect.Parameter.POSITIONAL_OR_KEYWORD,
                        default=inspect.Parameter.empty if i < required else None,
                    )
                    for i, name in enumerate(names)
                ]
            )
    return found


def example(kind: str) -> Call:
    one, per_rank = [torch.ones(4)], [torch.ones(4) for _ in RANKS]
    op = 0 if "reduce" in kind else 9
    sends = {
        "reduce_scatter": per_rank,
        "all_to_all": per_rank,
        "scatter": per_rank,
        "recv": [],
        "barrier": [],
    }
    recvs = {"all_gather": per_rank, "all_to_all": per_rank, "gather": per_rank, "send": [], "barrier": []}
    rooted = kind in ("reduce", "broadcast", "gather", "scatter", "send", "recv")
    return Call(kind, sends.get(kind, one), recvs.get(kind, one), op, root=1 if rooted else -1)


@pytest.mark.parametrize("kind", list(KINDS))
def test_arguments_bind(kind):
    made = issue(example(kind), "tp-3", RANKS, lambda t: t)
    bound = signatures()[made.function].bind(**made.arguments)
    assert bound.arguments["group"] == "tp-3"
    rank = (
        1 if kind == "reduce" else 5
    )  # group rank 1 is global rank 5; MindSpore 2.10 converts but in reduce
    for name in ("src", "dst"):
        assert bound.arguments.get(name, rank) == rank


@pytest.mark.parametrize(
    ("kind", "function", "whole"),
    [
        ("all_gather", "all_gather_into_tensor", "output_tensor"),
        ("reduce_scatter", "reduce_scatter_tensor", "input"),
        ("all_to_all", "all_to_all_single", "output"),
    ],
)
def test_parts_of_one_tensor_go_as_one(kind, function, whole):
    parts = list(torch.arange(12.0).split(4))
    others = list(torch.arange(12.0).split(4)) if kind == "all_to_all" else [torch.zeros(4)]
    sends, recvs = (others, parts) if kind == "all_gather" else (parts, others)
    call = Call(kind, sends, recvs, 0 if kind == "reduce_scatter" else 9)
    made = issue(call, "tp-3", RANKS, lambda t: t)
    assert made.function == function
    signatures()[function].bind(**made.arguments)
    assert made.arguments[whole].tolist() == list(range(12))
    scattered = Call(kind, sends[::-1], recvs[::-1], call.op)  # the same memory in another order
    assert issue(scattered, "tp-3", RANKS, lambda t: t).function == kind


def test_average_is_a_scaled_sum_and_bitwise_is_refused():
    average = Call("all_reduce", [torch.ones(2)], [torch.ones(2)], op=1)
    assert issue(average, "g", RANKS, lambda t: t).arguments["op"] == "sum"
    with pytest.raises(TypeError, match="no reduction number 5"):
        issue(Call("all_reduce", [torch.ones(2)], [torch.ones(2)], op=5), "g", RANKS, lambda t: t)
    with pytest.raises(ValueError, match="any source"):
        issue(Call("recv", (), [torch.ones(2)]), "g", RANKS, lambda t: t)


def test_engine_has_the_shape_of_the_shared_memory_engine():
    from mindspeed_ms.comm.engine import SharedMemoryEngine

    for name in ("start", "history", "close"):
        ours = inspect.signature(getattr(AscendEngine, name))
        assert list(ours.parameters) == list(inspect.signature(getattr(SharedMemoryEngine, name)).parameters)
