"""Why tests of Megatron fail: those that no device of ours can pass, and the groups of the others."""

from __future__ import annotations

import re

from tests.conformance.megatron_runs import Outcome

_MORE_RANKS = (
    r"world.size \(\d+\) is not divisible by|Mesh should not be bigger than|is over sized with world size"
    r"|should be divisible by partial DistOpt shard factor"
)
_DOWNLOAD = r"ConnectionError|NameResolution|Max retries exceeded|huggingface\.co|URLError"
NOT_APPLICABLE: tuple[tuple[str, str, str], ...] = (
    ("", _MORE_RANKS, "the test needs more ranks than the run has"),
    (r"simple_broadcast\[6-", "not in group", "the test needs more ranks than the run has"),
    ("test_full_dp_reads", r"== \{'a': \[0\]\}", "the test needs more ranks than the run has"),
    ("test_cross_check_param_hashes", "assert not True", "the test needs more ranks than the run has"),
    (r"with_fp32_accumulation\[False", "size=\\(0, 1\\)", "the test needs more ranks than the run has"),
    (
        "test_tokenizer|test_fim",
        "doesn't exist|AutoTokenizer for /opt/data",
        "the test needs files of NVIDIA's machines",
    ),
    ("", r"request \d+, result .*!= expected", "the test expects what weights of CUDA's generator generate"),
    ("", "dummy base class _graph_pool_handle", "the test captures a CUDA graph"),
    ("", "CUDA_HOME", "the test compiles a CUDA extension"),
    ("", _DOWNLOAD, "the test downloads a file"),
    ("", "fp8 needs Transformer Engine|Float8\\w+Scaling", "the test computes in fp8"),
    (r"recompute_forward_backward\[True-", "pytorch.distributed", "the test computes in fp8"),
    ("", "using cudagraphs with RNG|CUDA graphs do not exist", "the test captures a CUDA graph"),
    ("", "CUDA Graphs are not supported without TE", "the test captures a CUDA graph"),
    ("test_oom_is_handled", "", "the test fills the memory until a concatenation fails, as CUDA's would"),
    ("", "no attribute 'modelopt_gpt_mamba_builder'", "the test needs the package nvidia-modelopt"),
    ("", "name 'nvtx' is not defined", "the test needs the package nvtx"),
    ("", "MambaSSM is not installed|mamba.ssm", "the test needs mamba-ssm, CUDA kernels"),
    ("", "Emerging Optimizers is not installed", "the test needs the package emerging_optimizers"),
    ("", "AutoTokenizer' is not defined", "the test needs transformers and a download"),
    (
        "",
        "No module named '(transformers|torchvision|flash_attn|transformer_engine_torch)'",
        "the test imports a package that is not installed",
    ),
)
"""(regex on file::test, regex on the message, reason): failures whose cause lies outside the product."""

_VARYING = (
    (re.compile(r"0x[0-9a-f]+"), "0x…"),
    (re.compile(r"/(?:[\w.+-]+/)+"), "…/"),
    (re.compile(r"\b\d+(?:\.\d+)?(?:e-?\d+)?\b"), "N"),
    (re.compile(r"\bport N\b"), "port N"),
)


def not_applicable(test: str, message: str) -> str:
    """Reason why this failure is not ours to mend, or the empty string."""
    for where, what, reason in NOT_APPLICABLE:
        if re.search(where, test) and re.search(what, message):
            return reason
    return ""


def cause(outcome: Outcome) -> str:
    """The exception line without what varies from test to test: numbers, addresses, folders."""
    text = outcome.message
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    if outcome.outcome in ("timeout", "crash", "not run"):
        text = f"{outcome.outcome}: {text}"
    return text[:160]
