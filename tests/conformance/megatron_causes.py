"""Why tests of Megatron fail: those that no device of ours can pass, and the groups of the others.

An excuse that excuses nothing fails: in `megatron_unit_tests.py` after a run of all files, and in
`test_megatron_runs.py` against the record of the last one, and when what it calls missing is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.conformance.megatron_runs import Outcome


@dataclass(frozen=True)
class Excuse:
    """Failures whose cause lies outside the product: of tests matching ``test``, with ``message``.

    Both are regular expressions, on file::test and on the message. ``missing``: the package that is not
    installed, and that the product does not provide.
    """

    test: str
    message: str
    reason: str
    missing: str = ""

    def covers(self, test: str, message: str) -> bool:
        """Whether it excuses this failure."""
        return re.search(self.test, test) is not None and re.search(self.message, message) is not None


_MORE_RANKS = "the test needs more ranks than the run has"
_NO_PACKAGE = "the test imports a package that is not installed"
_FP8 = "the test computes in fp8"
_GRAPH = "the test captures a CUDA graph"
EXCUSES: tuple[Excuse, ...] = (
    Excuse(
        "",
        r"world.size \(\d+\) is not divisible by|Mesh should not be bigger|is over sized with world size"
        r"|should be divisible by partial DistOpt shard factor",
        _MORE_RANKS,
    ),
    Excuse(r"simple_broadcast\[6-", "not in group", _MORE_RANKS),
    Excuse("test_full_dp_reads", r"== \{'a': \[0\]\}", _MORE_RANKS),
    Excuse("test_cross_check_param_hashes", "assert not True", _MORE_RANKS),
    Excuse(r"with_fp32_accumulation\[False", r"size=\(0, 1\)", _MORE_RANKS),
    Excuse(
        "test_tokenizer|test_fim",
        "doesn't exist|AutoTokenizer for /opt/data",
        "the test needs files of NVIDIA's machines",
    ),
    Excuse(
        "",
        r"request \d+, result .*!= expected",
        "the test expects what weights of CUDA's generator generate",
    ),
    Excuse("", "CUDA_HOME", "the test compiles a CUDA extension"),
    Excuse(
        "",
        r"ConnectionError|NameResolution|Max retries exceeded|huggingface\.co|URLError",
        "the test downloads a file",
    ),
    Excuse("", r"fp8 needs Transformer Engine|Float8\w+Scaling", _FP8),
    Excuse(r"recompute_forward_backward\[True-", "pytorch.distributed", _FP8),
    Excuse("", "dummy base class _graph_pool_handle", _GRAPH),
    Excuse("", "using cudagraphs with RNG|CUDA graphs do not exist", _GRAPH),
    Excuse("", "CUDA Graphs are not supported without TE", _GRAPH),
    Excuse(
        "test_oom_is_handled",
        "",
        "the test fills the memory until a concatenation fails, as CUDA's would",
    ),
    Excuse(
        "",
        "no attribute 'modelopt_gpt_mamba_builder'",
        "the test needs the package nvidia-modelopt",
        missing="modelopt",
    ),
    Excuse("", "name 'nvtx' is not defined", "the test needs the package nvtx", missing="nvtx"),
    Excuse("", "No module named 'torchvision'", _NO_PACKAGE, missing="torchvision"),
    Excuse("", "No module named 'transformer_engine_torch'", _NO_PACKAGE, missing="transformer_engine_torch"),
)

_VARYING = (
    (re.compile(r"0x[0-9a-f]+"), "0x…"),
    (re.compile(r"/(?:[\w.+-]+/)+"), "…/"),
    (re.compile(r"\b\d+(?:\.\d+)?(?:e-?\d+)?\b"), "N"),
    (re.compile(r"\bport N\b"), "port N"),
)


def excuse_of(test: str, message: str) -> Excuse | None:
    """The excuse that covers this failure, if one does."""
    return next((excuse for excuse in EXCUSES if excuse.covers(test, message)), None)


def cause(outcome: Outcome) -> str:
    """The exception line without what varies from test to test: numbers, addresses, folders."""
    text = outcome.message
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    if outcome.outcome in ("timeout", "crash", "not run"):
        text = f"{outcome.outcome}: {text}"
    return text[:160]
