"""Stock Megatron-LM flags, derived from Megatron-Core's config classes, and their checks.

What this file adds to the derivation are tables: fields whose stock flag has another name, whose stock
default is another one, that are no flags because the recipe sets them, and flags that it cannot honour.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import math
import os
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.fusions.fused_bias_geglu import quick_gelu
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.optimizer import OptimizerConfig
from megatron.core.tensor_parallel import layers
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_config import MLATransformerConfig

from .errors import RecipeError
from .flags import DTYPES, FlagParser, add_flags, int_pair, layer_pattern
from .settings import SETTINGS

# field -> stock flag; "!" marks a flag that switches the field off.
NAMES = {
    "add_bias_linear": "!disable-bias-linear",
    "add_position_embedding": "!no-position-embedding",
    "average_in_collective": "ddp-average-in-collective",
    "barrier_with_L1_time": "!no-barrier-with-level-1-timing",
    "bucket_size": "ddp-bucket-size",
    "check_for_nan_in_grad": "!no-check-for-nan-in-loss-and-grad",
    "apply_rope_fusion": "!no-rope-fusion",
    "create_attention_mask": "!no-create-attention-mask-in-dataloader",
    "defer_npy_index_mmap": "dataloader-defer-npy-index-mmap",
    "enable_gloo_process_groups": "!disable-gloo-process-groups",
    "fast_cache_load": "dataloader-fast-cache-load",
    "grad_reduce_in_fp32": "accumulate-allreduce-grads-in-fp32",
    "layernorm_epsilon": "norm-epsilon",
    "layernorm_zero_centered_gamma": "apply-layernorm-1p",
    "microbatch_group_size_per_vp_stage": "microbatch-group-size-per-virtual-pipeline-stage",
    "muon_split_qkv": "!muon-no-split-qkv",
    "num_layers_in_first_pipeline_stage": "decoder-first-pipeline-num-layers",
    "num_layers_in_last_pipeline_stage": "decoder-last-pipeline-num-layers",
    "num_moe_experts": "num-experts",
    "overlap_p2p_comm": "!no-overlap-p2p-communication",
    "overlap_p2p_comm_warmup_flush": "overlap-p2p-communication-warmup-flush",
    "override_opt_param_scheduler": "override-opt_param-scheduler",
    "pad_buckets_for_high_nccl_busbw": "ddp-pad-buckets-for-high-nccl-busbw",
    "path_to_cache": "data-cache-path",
    "perform_initialization": "!no-initialization",
    "persist_layer_norm": "!no-persist-layer-norm",
    "random_seed": "seed",
    "reduce_scatter_with_fp32_accumulation": "ddp-reduce-scatter-with-fp32-accumulation",
    "sequence_length": "seq-length",
    "use_checkpoint_opt_param_scheduler": "use-checkpoint-opt_param-scheduler",
}
# field -> Megatron-LM's default, where the config class has another one.
DEFAULTS = {
    "apply_rope_fusion": True,
    "attention_softmax_in_fp32": False,
    "bias_dropout_fusion": True,
    "check_for_nan_in_grad": True,
    "cp_comm_type": ["p2p"],
    "eod_mask_loss": False,
    "gradient_accumulation_fusion": True,
    "hidden_size": None,
    "masked_softmax_fusion": True,
    "muon_momentum": 0.9,
    "num_attention_heads": None,
    "num_layers": None,
    "num_query_groups": 1,
    "overlap_p2p_comm": True,
    "persist_layer_norm": True,
    "random_seed": 1234,
    "reset_attention_mask": False,
    "reset_position_ids": False,
    "transformer_impl": "local",
}
# field -> how to read it, where its type is a union.
TYPES: dict[str, dict[str, Any]] = {
    "cp_comm_type": {"type": str, "nargs": "+", "choices": ["p2p", "a2a", "allgather", "all_gather"]},
    "linear_attention_freq": {"type": layer_pattern},
    "moe_aux_loss_coeff": {"type": float, "nargs": "+"},
    "moe_layer_freq": {"type": layer_pattern},
    "moe_router_load_balancing_type": {
        "type": str,
        "nargs": "+",
        "choices": ["aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "none"],
    },
    "no_rope_freq": {"type": layer_pattern},
    "pipeline_model_parallel_layout": {"type": str},
    "transformer_impl": {"type": str, "choices": ["local"]},
    "window_attn_skip_freq": {"type": layer_pattern},
    "window_size": {"type": int_pair},
}
# Fields that the recipe sets itself, from the flags or as callbacks.
SET_BY_RECIPE = frozenset(
    {
        "_cpu_offloading_context",
        "activation_func",
        "autocast_dtype",
        "batch_p2p_comm",
        "batch_p2p_sync",
        "bias_activation_fusion",
        "blend",
        "blend_per_split",
        "data_parallel_size",
        "deallocate_pipeline_outputs",
        "embedding_init_method",
        "enable_autocast",
        "finalize_model_grads_func",
        "gated_linear_unit",
        "grad_scale_func",
        "grad_sync_func",
        "inference_sampling_seed",
        "init_method",
        "memory_efficient_layer_norm",
        "mock",
        "no_sync_func",
        "num_microbatches_with_partial_activation_checkpoints",
        "output_layer_init_method",
        "param_sync_func",
        "params_dtype",
        "pipeline_dtype",
        "sequence_parallel_size",
        "sequences_per_dataset",
        "timers",
        "token_dtype_code",
        "tokenizer",
        "variable_seq_lengths",
        "virtual_pipeline_model_parallel_size",
    }
)
# Fields that make sense only with other hardware, other model classes or packages outside PyPI.
_CUDA_GRAPH = "CUDA graphs record CUDA streams, which this device does not have"
_TE = "it is a feature of Transformer Engine, which runs on NVIDIA hardware only"
_FSDP = "sharding is done by --use-distributed-optimizer here"
_OTHER_MODEL = "it belongs to another model than GPT"
_INFERENCE = "it is for inference, not for pretraining"
REFUSED_PREFIXES = {
    "cuda_graph": _CUDA_GRAPH,
    "enable_cuda_graph": _CUDA_GRAPH,
    "external_cuda_graph": _CUDA_GRAPH,
    "fp4": _TE,
    "fp8": _TE,
    "tp_comm": _TE,
    "first_last_layers_bf16": _TE,
    "num_layers_at": _TE,
    "tp_only_amax_red": _TE,
    "use_te": _TE,
    "use_kitchen": _TE,
    "kitchen": _TE,
    "delay_wgrad_compute": _TE,
    "cpu_offloading": _TE,
    "fine_grained_activation_offloading": _TE,
    "offload_modules": _TE,
    "min_offloaded_tensor_size": _TE,
    "disable_parameter_transpose_cache": _TE,
    "reuse_grad_buf_for_mxfp8_param_ag": _TE,
    "quant_recipe": _TE,
    "symmetric_ar_type": _TE,
    "use_megatron_fsdp": _FSDP,
    "use_custom_fsdp": _FSDP,
    "data_parallel_sharding_strategy": _FSDP,
    "outer_dp_sharding_strategy": _FSDP,
    "suggested_communication_unit_size": _FSDP,
    "preserve_fp32_weights": _FSDP,
    "keep_fp8_transpose_cache": _FSDP,
    "nccl_ub": _FSDP,
    "fsdp": _FSDP,
    "disable_symmetric_registration": _FSDP,
    "mamba": _OTHER_MODEL,
    "use_mamba": _OTHER_MODEL,
    "is_hybrid_model": _OTHER_MODEL,
    "hetero": _OTHER_MODEL,
    "hetereogenous": _OTHER_MODEL,
    "mrope": _OTHER_MODEL,
    "inference": _INFERENCE,
    "use_inference": _INFERENCE,
    "flash_decode": _INFERENCE,
    "mlp_chunks_for_prefill": _INFERENCE,
    "test_mode": _INFERENCE,
    "cache_mla_latents": _INFERENCE,
    "mtp_": "multi-token prediction needs Transformer Engine's layers",
    "multiple_validation_sets": "give one validation set with --valid-data-path",
    "full_validation": "give the number of iterations with --eval-iters",
    "hybrid_context_parallel": "use --context-parallel-size alone",
    "allow_ambiguous_pad_tokens": "GPT data has no padding tokens here",
    "object_storage_cache_path": "data is read from files",
    "init_model_with_meta_device": "weights are initialised on the device",
}
# Stock flags of other parts of Megatron-LM that are often found in command lines.
REFUSED_FLAGS = {
    "use-torch-fsdp2": _FSDP,
    "yaml-cfg": "give flags",
    "wandb-project": "use --tensorboard-dir",
    "profile": "use `mindspeed-ms coverage`",
    "encoder-num-layers": _OTHER_MODEL,
    "batch-size": "its name is --micro-batch-size",
    "warmup": "its name is --lr-warmup-fraction",
    "model-parallel-size": "its name is --tensor-model-parallel-size",
    "checkpoint-activations": "its name is --recompute-activations",
    "use-checkpoint-args": "repeat the model's flags",
}
CONFIGS = (
    TransformerConfig,
    MLATransformerConfig,
    OptimizerConfig,
    DistributedDataParallelConfig,
    GPTDatasetConfig,
)


def refusal(field: str) -> str | None:
    """Why the recipe takes no flag for this config field or one that starts so; None if it does."""
    return next((why for prefix, why in REFUSED_PREFIXES.items() if field.startswith(prefix)), None)


def build_parser() -> FlagParser:
    """The parser: the recipe's settings, then the fields of Megatron-Core's configs."""
    fields = {field.name for config in CONFIGS for field in dataclasses.fields(config)}
    parser = FlagParser(
        lambda flag: REFUSED_FLAGS.get(flag) or refusal(flag.replace("-", "_")),
        prog="pretrain_gpt.py",
        description=__doc__,
    )
    for settings in SETTINGS:
        add_flags(parser, settings, NAMES, {}, {}, frozenset())
    excluded = SET_BY_RECIPE | {field for field in fields if refusal(field)}
    for config in CONFIGS:
        add_flags(parser, config, NAMES, DEFAULTS, TYPES, excluded)
    # Stock Megatron takes these two with a hyphen as well.
    for name in ("override_opt_param_scheduler", "use_checkpoint_opt_param_scheduler"):
        parser.add_argument(
            "--" + name.replace("_", "-"), dest=name, action="store_true", help=argparse.SUPPRESS
        )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags -> checked namespace, one attribute for each config field and setting, `rank` and `world_size`.

    Args:
        argv: words of the command line; default: the process's own.

    Raises:
        SystemExit: a flag is unknown, refused or malformed (exit code 2, one sentence on stderr).
        RecipeError: flags contradict each other or the number of processes.
    """
    args = build_parser().parse(argv)
    args.rank = int(os.environ.get("RANK", "0"))
    args.world_size = int(os.environ.get("WORLD_SIZE", "1"))
    complete(args)
    check(args)
    return args


def complete(args: argparse.Namespace) -> None:
    """Fills in what Megatron-LM derives from other flags."""
    if args.use_rotary_position_embeddings:
        args.position_embedding_type = "rope"
    if args.recompute_activations:
        args.recompute_granularity = "selective"
    if args.ffn_hidden_size is None and args.hidden_size:
        # SwiGLU has three matrices instead of two: 2/3 of 4h keeps the number of parameters.
        wide = 4 * args.hidden_size
        args.ffn_hidden_size = wide * 2 // 3 // 64 * 64 if args.swiglu else wide
    if not args.group_query_attention:
        args.num_query_groups = None
    if args.tensor_model_parallel_size == 1:
        args.sequence_parallel = False
    if args.num_moe_experts == 0:
        args.num_moe_experts = None
    if args.num_moe_experts and args.moe_ffn_hidden_size is None:
        args.moe_ffn_hidden_size = args.ffn_hidden_size
    for name in ("moe_router_load_balancing_type", "moe_aux_loss_coeff", "cp_comm_type"):
        value = getattr(args, name)
        if isinstance(value, list) and len(value) == 1:
            setattr(args, name, value[0])
    if args.add_bias_linear:
        args.add_qkv_bias = True
    else:
        args.bias_gelu_fusion = False
    if args.position_embedding_type != "rope":
        args.apply_rope_fusion = False
    if args.apply_query_key_layer_scaling:
        args.attention_softmax_in_fp32 = True
    if args.bf16 and not args.grad_reduce_in_bf16:
        args.grad_reduce_in_fp32 = True
    if args.fp16 and args.loss_scale is None:
        # With a dynamic loss scale, Inf and NaN in gradients tell the scaler to back off.
        args.check_for_nan_in_grad = False
    args.params_dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    if args.data_path is not None and args.split is None:
        args.split = "969, 30, 1"
    if args.weight_decay_incr_style == "constant":
        args.start_weight_decay = args.end_weight_decay = args.weight_decay
    if args.min_lr is None:
        args.min_lr = 0.0
    args.virtual_pipeline_model_parallel_size = virtual_pipeline_size(args)
    if args.virtual_pipeline_model_parallel_size is None:
        args.overlap_p2p_comm = args.align_param_gather = False
    model_parallel = (
        args.tensor_model_parallel_size * args.pipeline_model_parallel_size * args.context_parallel_size
    )
    args.data_parallel_size = max(1, args.world_size // model_parallel)
    if args.global_batch_size is None and args.micro_batch_size:
        args.global_batch_size = args.micro_batch_size * args.data_parallel_size


def virtual_pipeline_size(args: argparse.Namespace) -> int | None:
    """Model chunks of each pipeline rank in the interleaved schedule; None for the plain one."""
    if args.num_virtual_stages_per_pipeline_rank is not None:
        chunks = args.num_virtual_stages_per_pipeline_rank
    elif args.num_layers_per_virtual_pipeline_stage is not None and args.num_layers:
        per_stage = args.num_layers // args.pipeline_model_parallel_size
        require(
            per_stage % args.num_layers_per_virtual_pipeline_stage == 0,
            f"{per_stage} layers of a pipeline stage cannot be cut into virtual stages of "
            f"--num-layers-per-virtual-pipeline-stage {args.num_layers_per_virtual_pipeline_stage}",
        )
        chunks = per_stage // args.num_layers_per_virtual_pipeline_stage
    else:
        return None
    return chunks if chunks > 1 else None


def require(condition: Any, sentence: str) -> None:
    """Raises RecipeError(sentence) unless `condition` holds."""
    if not condition:
        raise RecipeError(sentence)


def divides(divisor: int, flag: str, number: int, what: str) -> None:
    """Requires `number` to be a multiple of `divisor`, which `flag` gave."""
    require(number % divisor == 0, f"{what} ({number}) must be a multiple of {flag} ({divisor})")


def check(args: argparse.Namespace) -> None:
    """Megatron-LM's consistency checks that concern this recipe; RecipeError names the flags to change."""
    for name in ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "lr"):
        require(getattr(args, name) is not None, f"--{name.replace('_', '-')} is missing")
    require(args.sequence_length, "--seq-length is missing")
    require(args.micro_batch_size, "--micro-batch-size is missing")
    check_parallel(args)
    check_model(args)
    check_training(args)


def check_parallel(args: argparse.Namespace) -> None:
    """World size, batch and parallel sizes fit together."""
    tensor, pipeline = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
    context, expert = args.context_parallel_size, args.expert_model_parallel_size
    require(
        args.world_size % (tensor * pipeline * context) == 0,
        f"{args.world_size} processes cannot be divided into groups of tensor ({tensor}) x pipeline "
        f"({pipeline}) x context ({context}) parallel ranks; start {tensor * pipeline * context} or more",
    )
    divides(
        args.micro_batch_size * args.data_parallel_size,
        "--micro-batch-size x data parallel size",
        args.global_batch_size,
        "--global-batch-size",
    )
    divides(tensor, "--tensor-model-parallel-size", args.num_attention_heads, "--num-attention-heads")
    if args.num_query_groups:
        divides(tensor, "--tensor-model-parallel-size", args.num_query_groups, "--num-query-groups")
    uneven = args.num_layers_in_first_pipeline_stage or args.num_layers_in_last_pipeline_stage
    embedded = args.account_for_embedding_in_pipeline_split + args.account_for_loss_in_pipeline_split
    if not uneven and args.pipeline_model_parallel_layout is None:
        divides(pipeline, "--pipeline-model-parallel-size", args.num_layers + embedded, "--num-layers")
    if args.virtual_pipeline_model_parallel_size:
        require(
            pipeline > (1 if args.overlap_p2p_comm else 2),
            "the interleaved schedule needs --pipeline-model-parallel-size above 1, "
            "and above 2 with --no-overlap-p2p-communication",
        )
    if context > 1:
        divides(2 * context, "2 x --context-parallel-size", args.sequence_length, "--seq-length")
    if args.sequence_parallel:
        divides(tensor, "--tensor-model-parallel-size", args.sequence_length, "--seq-length")
    if expert > 1:
        require(args.num_moe_experts, "--expert-model-parallel-size above 1 needs --num-experts")
        divides(expert, "--expert-model-parallel-size", args.num_moe_experts, "--num-experts")
    if args.overlap_param_gather:
        require(
            args.use_distributed_optimizer and args.overlap_grad_reduce,
            "--overlap-param-gather needs --use-distributed-optimizer and --overlap-grad-reduce",
        )


def check_model(args: argparse.Namespace) -> None:
    """Sizes of the model fit together."""
    if args.kv_channels is None:
        divides(args.num_attention_heads, "--num-attention-heads", args.hidden_size, "--hidden-size")
    if args.num_query_groups:
        divides(
            args.num_query_groups, "--num-query-groups", args.num_attention_heads, "--num-attention-heads"
        )
    require(
        args.max_position_embeddings >= args.sequence_length,
        f"--max-position-embeddings ({args.max_position_embeddings}) must be at least "
        f"--seq-length ({args.sequence_length})",
    )
    require(not (args.fp16 and args.bf16), "choose one of --fp16 and --bf16")
    require(
        args.swiglu + args.squared_relu + args.quick_geglu <= 1,
        "choose one of --swiglu, --squared-relu and --quick-geglu",
    )
    require(
        not args.fp32_residual_connection or args.fp16 or args.bf16,
        "--fp32-residual-connection needs --fp16 or --bf16",
    )
    require(
        not args.multi_latent_attention or not args.group_query_attention,
        "--multi-latent-attention and --group-query-attention exclude each other",
    )
    if args.recompute_granularity == "selective":
        require(args.recompute_method is None, "--recompute-method belongs to --recompute-granularity full")
    if args.recompute_granularity == "full":
        require(
            args.recompute_method is not None,
            "--recompute-granularity full needs --recompute-method uniform or block",
        )


def check_training(args: argparse.Namespace) -> None:
    """One length of the run, one schedule, one data source, a save interval for a save folder."""
    require(
        (args.train_iters is None) != (args.train_samples is None),
        "give the length of the run as one of --train-iters and --train-samples",
    )
    unit, other = ("iters", "samples") if args.train_iters is not None else ("samples", "iters")
    for name in ("lr_decay", "lr_warmup", "lr_wsd_decay"):
        require(
            not getattr(args, f"{name}_{other}"),
            f"--{name}_{other} does not go with --train-{unit}".replace("_", "-"),
        )
    require(
        args.lr_warmup_fraction is None or not getattr(args, f"lr_warmup_{unit}"),
        f"choose one of --lr-warmup-fraction and --lr-warmup-{unit}",
    )
    require(args.min_lr <= args.lr, f"--min-lr ({args.min_lr}) must not be above --lr ({args.lr})")
    require(
        args.weight_decay_incr_style == "constant"
        or None not in (args.start_weight_decay, args.end_weight_decay),
        f"--weight-decay-incr-style {args.weight_decay_incr_style} needs --start-weight-decay and "
        "--end-weight-decay",
    )
    require(args.save is None or args.save_interval, "--save needs --save-interval")
    per_split = any((args.train_data_path, args.valid_data_path, args.test_data_path))
    require(
        bool(args.data_path) + per_split + args.mock_data == 1,
        "give the data as one of --data-path, --train-data-path (with --valid-data-path) and --mock-data",
    )
    require(args.random_seed > 0, f"--seed must be positive, not {args.random_seed}")


def config_from(config_class: type, args: argparse.Namespace, overrides: Mapping[str, Any]) -> Any:
    """Builds one of Megatron-Core's configs from the namespace; its own complaint becomes a RecipeError."""
    hints = typing.get_type_hints(config_class)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        if not field.init or not hasattr(args, field.name):
            continue
        value, annotation = getattr(args, field.name), hints[field.name]
        if annotation is torch.dtype and isinstance(value, str):
            value = DTYPES[value]
        elif isinstance(annotation, type) and issubclass(annotation, enum.Enum):
            value = annotation[value]
        values[field.name] = value
    values.update(overrides)
    try:
        return config_class(**values)
    except (AssertionError, ValueError) as error:
        raise RecipeError(f"Megatron-Core's {config_class.__name__} refuses these flags: {error}") from error


def transformer_config(args: argparse.Namespace) -> TransformerConfig:
    """The model's config: `args` plus what Megatron-LM derives from its activation flags."""
    overrides: dict[str, Any] = {
        "deallocate_pipeline_outputs": True,
        "pipeline_dtype": args.params_dtype,
        "batch_p2p_comm": not args.overlap_p2p_comm,
        "bias_activation_fusion": args.bias_gelu_fusion,
    }
    if args.swiglu:
        overrides |= {
            "activation_func": F.silu,
            "gated_linear_unit": True,
            "bias_activation_fusion": args.bias_swiglu_fusion,
        }
    elif args.squared_relu:
        overrides["activation_func"] = lambda x: torch.pow(F.relu(x), 2)
    elif args.quick_geglu:
        overrides |= {"activation_func": quick_gelu, "gated_linear_unit": True}
    if args.init_method_xavier_uniform:
        overrides["init_method"] = torch.nn.init.xavier_uniform_
    # On by default in stock Megatron, which then demands their packages; here they are on if available.
    overrides["apply_rope_fusion"] = (
        args.apply_rope_fusion and rope_utils.fused_apply_rotary_pos_emb is not None
    )
    overrides["gradient_accumulation_fusion"] = (
        args.gradient_accumulation_fusion and layers._grad_accum_fusion_available
    )
    config_class = MLATransformerConfig if args.multi_latent_attention else TransformerConfig
    return config_from(config_class, args, overrides)


def optimizer_config(args: argparse.Namespace) -> OptimizerConfig:
    """Config for `get_megatron_optimizer`."""
    return config_from(OptimizerConfig, args, {})


def ddp_config(args: argparse.Namespace, parameters: int) -> DistributedDataParallelConfig:
    """Config for DistributedDataParallel around a model with `parameters` parameters on this rank."""
    config = config_from(DistributedDataParallelConfig, args, {})
    if args.ddp_num_buckets:
        config.bucket_size = parameters // args.ddp_num_buckets
    elif config.bucket_size is None:
        config.bucket_size = max(40_000_000, 1_000_000 * args.data_parallel_size * args.context_parallel_size)
    if not config.overlap_grad_reduce:
        config.bucket_size = None
    return config


def padded_vocab_size(size: int, args: argparse.Namespace) -> int:
    """`size` rounded up so that every tensor parallel rank gets an equal, aligned share."""
    multiple = args.make_vocab_size_divisible_by * args.tensor_model_parallel_size
    return math.ceil(size / multiple) * multiple
