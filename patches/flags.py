"""Megatron-LM flags that mean something else here: one table, applied before Megatron checks its arguments.

A flag without a row is effective: Megatron reads it, and what it asks for happens. A row says when a flag is
*harmless* (accepted, one log line, the same numbers without it), *replaced* (accepted, one log line that says
what is computed instead: other numbers) or *refused* (one sentence, with the alternative). :func:`apply` is
called by the patch of ``megatron.training.arguments:validate_args``.
"""

from __future__ import annotations

import argparse
import enum
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)


class Status(enum.Enum):
    """What becomes of a flag."""

    EFFECTIVE = "effective"
    HARMLESS = "harmless"
    REPLACED = "replaced"
    REFUSED = "refused"

    @property
    def verdict(self) -> str:
        """What the log line, or the error, says of a flag of this status."""
        return {"harmless": "has no effect", "replaced": "is replaced"}.get(self.value, "is refused")


class RefusedFlagError(ValueError):
    """A flag asks for what cannot be had here; the message names the alternative."""


def _given(value: Any) -> bool:
    """Whether a switch or an optional value was set."""
    return value not in (None, False, [], "none")


def _one_of(*values: str) -> Callable[[Any], bool]:
    """Whether the value, or the name of an enum's member, is one of these."""
    return lambda value: getattr(value, "name", value) in values


@dataclass(frozen=True)
class Row:
    """Flags with one meaning here.

    ``flag`` decides: the row concerns a run when ``applies(args.<dest>)``. ``also`` are flags that say
    nothing without it. ``becomes``: attributes of Megatron's args to set (rows that are not refused); those
    that this Megatron-LM does not have are left out. ``values`` names, for the docs, the values concerned
    when not all are.
    """

    flag: str
    dest: str
    status: Status
    reason: str
    also: tuple[str, ...] = ()
    applies: Callable[[Any], bool] = _given
    values: tuple[str, ...] = ()
    becomes: Mapping[str, Any] = field(default_factory=dict)


EAGER = {
    "cuda_graph_impl": "none",
    "cuda_graph_scope": [],
    "cuda_graph_modules": [],
    "enable_cuda_graph": False,
    "external_cuda_graph": False,
    "te_rng_tracker": False,
}
NO_FP8 = {
    "fp8": None,
    "fp8_recipe": "delayed",
    "fp8_param_gather": False,
    "first_last_layers_bf16": False,
    "fp8_output_proj": False,
    "reuse_grad_buf_for_mxfp8_param_ag": False,
}
ALLTOALL = {
    "moe_token_dispatcher_type": "alltoall",
    "moe_enable_deepep": False,
    "moe_flex_dispatcher_backend": "deepep",  # the default; the others are checked for "flex"
}
_CUDA_GRAPH = "there are no CUDA graphs on this device; every step runs eagerly, with the same numbers"
_FP8 = (
    "no hardware here computes in fp8; the run computes in the precision of --bf16, --fp16 or float32, with "
    "the numbers of a run without it, not those of an fp8 run"
)
_RL = (
    "reinforcement learning needs Megatron's dynamic inference engine, whose kernels are CUDA's; "
    "train on the rollouts with pretrain_gpt.py instead"
)

ROWS: tuple[Row, ...] = (
    Row(
        "cuda-graph-impl",
        "cuda_graph_impl",
        Status.HARMLESS,
        _CUDA_GRAPH,
        also=(
            *("cuda-graph-scope", "cuda-graph-modules", "cuda-graph-warmup-steps"),
            *("moe-pad-experts-for-cuda-graph-inference", "inference-cuda-graph-scope"),
            *("inference-cuda-graph-all-prefills", "inference-cuda-graph-max-tokens"),
        ),
        becomes=EAGER,
    ),
    Row("enable-cuda-graph", "enable_cuda_graph", Status.HARMLESS, _CUDA_GRAPH, becomes=EAGER),
    Row("external-cuda-graph", "external_cuda_graph", Status.HARMLESS, _CUDA_GRAPH, becomes=EAGER),
    Row(
        "optimizer-cuda-graph",
        "optimizer_cuda_graph",
        Status.HARMLESS,
        _CUDA_GRAPH,
        becomes={"optimizer_cuda_graph": False},
    ),
    Row(
        "delay-offload-until-cuda-graph",
        "delay_offload_until_cuda_graph",
        Status.HARMLESS,
        _CUDA_GRAPH,
        becomes={"delay_offload_until_cuda_graph": False},
    ),
    Row(
        "decode-only-cuda-graphs",
        "decode_only_cuda_graphs",
        Status.HARMLESS,
        _CUDA_GRAPH,
        also=(
            *(
                "inference-dynamic-batching-num-cuda-graphs",
                "inference-dynamic-batching-cuda-graph-max-tokens",
            ),
        ),
        becomes={"decode_only_cuda_graphs": False},
    ),
    Row(
        "te-rng-tracker",
        "te_rng_tracker",
        Status.HARMLESS,
        "Transformer Engine's RNG tracker serves CUDA graphs only; Megatron's own draws the same numbers",
        becomes={"te_rng_tracker": False},
    ),
    Row(
        "fp8-format",
        "fp8",
        Status.REPLACED,
        _FP8,
        also=(
            *("fp8-recipe", "fp8-amax-history-len", "fp8-amax-compute-algo", "fp8-margin", "fp8-interval"),
            *("first-last-layers-bf16", "num-layers-at-start-in-bf16", "num-layers-at-end-in-bf16"),
            "fp8-output-proj",
        ),
        becomes=NO_FP8,
    ),
    Row("fp8-param-gather", "fp8_param_gather", Status.REPLACED, _FP8, becomes=NO_FP8),
    Row("fp4-format", "fp4", Status.REPLACED, _FP8, becomes={"fp4": None, "fp4_param": False}),
    Row(
        "tp-comm-overlap",
        "tp_comm_overlap",
        Status.HARMLESS,
        "it overlaps GEMMs with communication in Transformer Engine's user buffers; here they run in order",
        also=("tp-comm-overlap-cfg",),
        becomes={"tp_comm_overlap": False},
    ),
    Row(
        "use-nccl-ub",
        "nccl_ub",
        Status.HARMLESS,
        "user buffers are NCCL's; collectives here need no registered memory",
        becomes={"nccl_ub": False, "fsdp_manual_registration": False},
    ),
    Row(
        "use-sharp",
        "use_sharp",
        Status.HARMLESS,
        "SHARP is NCCL's in-network reduction; collectives here do not use it",
        also=("sharp-enabled-group",),
        becomes={"use_sharp": False, "sharp_enabled_group": None},
    ),
    Row(
        "nccl-communicator-config-path",
        "nccl_communicator_config_path",
        Status.HARMLESS,
        "it tunes NCCL, which is not used here",
        becomes={"nccl_communicator_config_path": None},
    ),
    Row(
        "no-persist-layer-norm",
        "no_persist_layer_norm",
        Status.HARMLESS,
        "it chooses between two CUDA kernels of the same layer norm; there is one here",
    ),
    Row(
        "moe-token-dispatcher-type",
        "moe_token_dispatcher_type",
        Status.HARMLESS,
        "DeepEP, Hybrid-EP and NCCL EP are CUDA kernels; tokens go by all-to-all, to the same experts",
        also=(
            *("moe-flex-dispatcher-backend", "moe-flex-dispatcher-num-sms", "moe-deepep-num-sms"),
            *("moe-hybridep-num-sms", "moe-hybridep-num-sms-preprocessing"),
            *("moe-hybridep-num-blocks-permute", "moe-hybridep-num-blocks-unpermute"),
            *("moe-hybridep-pad-uneven-dispatch-inputs", "moe-permute-fusion-into-hybridep"),
            *("moe-ncclep-static-shape", "moe-ncclep-zero-copy"),
        ),
        applies=_one_of("flex"),
        values=("flex",),
        becomes=ALLTOALL,
    ),
    Row(
        "moe-enable-deepep",
        "moe_enable_deepep",
        Status.HARMLESS,
        "DeepEP is a CUDA kernel; tokens go by all-to-all, to the same experts",
        becomes=ALLTOALL,
    ),
    Row(
        "cross-entropy-fusion-impl",
        "cross_entropy_fusion_impl",
        Status.HARMLESS,
        "Transformer Engine's fused cross entropy is a CUDA kernel; Megatron's own gives the same loss",
        applies=_one_of("te"),
        values=("te",),
        becomes={"cross_entropy_fusion_impl": "native"},
    ),
    Row(
        "fine-grained-activation-offloading",
        "fine_grained_activation_offloading",
        Status.HARMLESS,
        "it moves activations with Transformer Engine's CUDA copies; here they stay, with the same numbers",
        also=(
            *("offload-modules", "min-offloaded-tensor-size", "activation-offload-fraction"),
            *("delta-offload-bytes-across-pp-ranks", "fine-grained-offloading-max-inflight-offloads"),
        ),
        becomes={"fine_grained_activation_offloading": False, "offload_modules": []},
    ),
    Row(
        "moe-paged-stash",
        "moe_paged_stash",
        Status.HARMLESS,
        "it keeps activations of experts in pages by Triton kernels; here they stay, with the same numbers",
        also=(
            *("moe-paged-stash-page-size", "moe-paged-stash-buffer-size-factor-cuda"),
            "moe-paged-stash-buffer-size-factor-cpu",
        ),
        becomes={"moe_paged_stash": False},
    ),
    Row(
        "moe-expert-rank-capacity-factor",
        "moe_expert_rank_capacity_factor",
        Status.REFUSED,
        "the buffers of HybridEP and NCCL EP, which it bounds, are CUDA's: use --moe-expert-capacity-factor, "
        "which bounds the tokens by expert",
    ),
    Row(
        "dsa-kernel-backend",
        "dsa_kernel_backend",
        Status.HARMLESS,
        "its kernels are CUDA's; Megatron's own operators compute the same sparse attention",
        applies=_one_of("tilelang", "cudnn"),
        values=("tilelang", "cudnn"),
        becomes={"dsa_kernel_backend": "none"},
    ),
    Row(
        "flash-attention-version",
        "flash_attention_version",
        Status.HARMLESS,
        "it chooses between generations of a CUDA kernel; there is one attention kernel here",
        becomes={"flash_attention_version": None},
    ),
    Row(
        "high-priority-a2a-comm-stream",
        "high_priority_a2a_comm_stream",
        Status.HARMLESS,
        "streams have no priorities here",
        becomes={"high_priority_a2a_comm_stream": False},
    ),
    Row(
        "overlap-dispatch-backward-with-experts-wgrad",
        "overlap_dispatch_backward_with_experts_wgrad",
        Status.HARMLESS,
        "it overlaps gradients of experts' weights with communication; here they run in order",
        becomes={"overlap_dispatch_backward_with_experts_wgrad": False},
    ),
    Row(
        "nvtx-ranges",
        "nvtx_ranges",
        Status.HARMLESS,
        "only NVIDIA's profilers read NVTX ranges; --use-pytorch-profiler names the same stretches",
        becomes={"nvtx_ranges": False},
    ),
    Row(
        "gpu-sniff-test-interval",
        "gpu_sniff_test_interval",
        Status.HARMLESS,
        "its products and messages are sized for GPUs; `mindspeed-ms selftest` tries a device",
        becomes={"gpu_sniff_test_interval": None},
    ),
    Row(
        "flight-recorder-dump-path",
        "flight_recorder_dump_path",
        Status.HARMLESS,
        "it records NCCL's calls, and there are none; a rank whose collective fails writes its last ones",
        also=(
            *("flight-recorder-trace-buffer-size", "flight-recorder-include-stack-trace"),
            *("no-flight-recorder-dump-on-timeout", "disable-flight-recorder-dump-on-timeout"),
            *("no-flight-recorder-include-only-active", "disable-flight-recorder-include-only-active"),
            *("no-flight-recorder-extra-dump-on-exec", "disable-flight-recorder-extra-dump-on-exec"),
        ),
        becomes={"flight_recorder_dump_path": None},
    ),
    Row(
        "transformer-impl",
        "transformer_impl",
        Status.REFUSED,
        "the inference_optimized layers are CUDA kernels: use --transformer-impl transformer_engine",
        also=(
            *("inference-fuse-tp-communication", "inference-disable-triton-nvls-kernels"),
            *("inference-grouped-gemm-backend", "inference-moe-disable-fused-quant-kernels"),
            "inference-moe-token-dispatcher-type",
        ),
        applies=_one_of("inference_optimized"),
        values=("inference_optimized",),
    ),
    Row(
        "perform-rl-step",
        "perform_rl_step",
        Status.REFUSED,
        _RL,
        also=(
            *("grpo-clamp-eps-lower", "grpo-clamp-eps-upper", "grpo-entropy-term-weight", "grpo-group-size"),
            *("grpo-iterations", "grpo-kl-beta", "grpo-prompts-per-step", "langrl-env-config"),
            *("langrl-inference-server-conversation-template", "langrl-inference-server-type"),
            *("refit-method", "rl-default-temperature", "rl-default-top-k", "rl-default-top-p"),
            *("rl-importance-sampling-truncation-coef", "rl-inference-expert-model-parallel-size"),
            *("rl-inference-expert-tensor-model-parallel-size", "rl-inference-logprobs-is-correction"),
            *("rl-inference-model-unified-memory-level", "rl-inference-pipeline-model-parallel-size"),
            *("rl-inference-tensor-model-parallel-size", "rl-offload-inference-model-weights-when-idle"),
            *("rl-offload-optimizer-during-inference", "rl-parallel-generation-tasks", "rl-partial-rollouts"),
            *("rl-sequence-packing-algo", "rl-skip-bos-token", "rl-use-sequence-packing"),
            *("no-rl-use-sequence-packing", "rl-generation-lag", "rl-submission-granularity"),
            *("rl-consumption-granularity", "rl-kv-cache-management-mode", "rl-persist-cuda-graphs"),
            *("no-rl-persist-cuda-graphs", "rl-profile", "rl-profile-dir", "rl-inference-parsers"),
        ),
    ),
    Row(
        "experimental-attention-variant",
        "experimental_attention_variant",
        Status.REFUSED,
        "gated delta nets need the flash-linear-attention package, whose kernels are triton's: drop "
        "--experimental-attention-variant, layers then use softmax attention",
        also=(
            *(
                "linear-attention-freq",
                "linear-conv-kernel-dim",
                "linear-key-head-dim",
                "linear-num-key-heads",
            ),
            *("linear-num-value-heads", "linear-value-head-dim"),
        ),
        applies=_one_of("gated_delta_net"),
        values=("gated_delta_net",),
    ),
)


def row_of(flag: str) -> Row | None:
    """The row that decides over `flag`, or lists it as one that says nothing alone; None: effective."""
    return next((row for row in ROWS if flag == row.flag or flag in row.also), None)


def apply(args: argparse.Namespace) -> None:
    """Change `args` as the table says, with one log line on rank 0 for each row that concerns this run.

    Raises:
        RefusedFlagError: the run asks for something that cannot be had; names the flag and the alternative.
    """
    concerned = [row for row in ROWS if row.applies(getattr(args, row.dest, None))]
    for row in concerned:
        if row.status is Status.REFUSED:
            raise RefusedFlagError(f"--{row.flag} {row.status.verdict}: {row.reason}.")
    for row in concerned:
        for name, value in row.becomes.items():
            if hasattr(args, name):
                setattr(args, name, value)
        if getattr(args, "rank", 0) == 0:
            logger.warning("--%s %s: %s.", row.flag, row.status.verdict, row.reason)
