"""The model: Megatron-Core's GPTModel with its local layers, in Megatron-Core's data parallel wrapper."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from megatron.core import mpu, tensor_parallel
from megatron.core.distributed import DistributedDataParallel
from megatron.core.enums import ModelType
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    HAVE_TE,
    get_gpt_decoder_block_spec,
    get_gpt_layer_local_spec,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module

from .arguments import ddp_config, padded_vocab_size
from .errors import RecipeError
from .tokenizer import Tokenizer


def known(function: object, **keywords: object) -> dict[str, object]:
    """Those keywords that this version of a Megatron-Core function takes (0.12 - 0.16 differ)."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return keywords
    return {name: value for name, value in keywords.items() if name in parameters}


def layer_spec(args: argparse.Namespace, config: TransformerConfig, chunk: int | None) -> object:
    """Megatron-Core's local layer spec; for a mixture of experts the block spec, which knows dense layers.

    Context parallelism needs Transformer Engine's core attention; it has no parameters, so that checkpoints
    stay the same. RecipeError where it is missing.
    """
    if args.num_moe_experts:
        spec = get_gpt_decoder_block_spec(
            config,
            use_transformer_engine=False,
            **known(
                get_gpt_decoder_block_spec,
                normalization=args.normalization,
                qk_l2_norm=args.qk_l2_norm,
                vp_stage=chunk,
            ),
        )
        layers = spec.layer_specs
    else:
        spec = get_gpt_layer_local_spec(
            **known(
                get_gpt_layer_local_spec,
                qk_layernorm=args.qk_layernorm,
                multi_latent_attention=args.multi_latent_attention,
                normalization=args.normalization,
                qk_l2_norm=args.qk_l2_norm,
            )
        )
        layers = [spec]
    if args.context_parallel_size > 1:
        if not HAVE_TE:
            raise RecipeError(
                "--context-parallel-size above 1 needs the attention of Transformer Engine, which is not "
                "installed: import mindspeed_ms.patch provides it"
            )
        from megatron.core.extensions.transformer_engine import TEDotProductAttention

        for layer in layers:
            layer.submodules.self_attention.submodules.core_attention = TEDotProductAttention
    return spec


def model_chunk(
    args: argparse.Namespace,
    config: TransformerConfig,
    vocab_size: int,
    first: bool,
    last: bool,
    chunk: int | None,
) -> GPTModel:
    """One pipeline chunk of the model; `first` holds the embedding, `last` the output layer and the loss."""
    model = GPTModel(
        config=config,
        transformer_layer_spec=layer_spec(args, config, chunk),
        vocab_size=vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=first,
        post_process=last,
        parallel_output=True,
        **known(
            GPTModel.__init__,
            fp16_lm_cross_entropy=args.fp16_lm_cross_entropy,
            share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
            position_embedding_type=args.position_embedding_type,
            rotary_percent=args.rotary_percent,
            rotary_base=args.rotary_base,
            rope_scaling=args.use_rope_scaling,
            rope_scaling_factor=args.rope_scaling_factor,
            seq_len_interpolation_factor=args.rotary_seq_len_interpolation_factor,
            vp_stage=chunk,
        ),
    )
    model.model_type = ModelType.encoder_or_decoder
    model.vp_stage = chunk
    return model


def build_model(
    args: argparse.Namespace, config: TransformerConfig, tokenizer: Tokenizer
) -> list[DistributedDataParallel]:
    """This rank's model chunks on the device, in the parameters' dtype, wrapped for data parallelism."""
    vocab_size = padded_vocab_size(tokenizer.vocab_size, args)
    stage, stages = mpu.get_pipeline_model_parallel_rank(), mpu.get_pipeline_model_parallel_world_size()
    chunks = args.virtual_pipeline_model_parallel_size
    try:
        models = [
            model_chunk(
                args,
                config,
                vocab_size,
                first=stage == 0 and index == 0,
                last=stage == stages - 1 and index == (chunks or 1) - 1,
                chunk=index if chunks else None,
            )
            for index in range(chunks or 1)
        ]
    except AssertionError as error:
        raise RecipeError(f"Megatron-Core refuses this model: {error}") from error
    parameters = 0
    for model in models:
        for parameter in model.parameters():
            tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
            parameters += parameter.numel()
        model.cuda(torch.cuda.current_device())
    if mpu.get_data_parallel_rank(with_context_parallel=True) == 0:
        print(
            f"parameters on tensor rank {mpu.get_tensor_model_parallel_rank()}, "
            f"pipeline rank {stage}: {parameters}",
            flush=True,
        )
    if args.fp16 or args.bf16:
        models = [Float16Module(config, model) for model in models]
    wrapped = [
        DistributedDataParallel(
            config=config,
            ddp_config=ddp_config(args, parameters),
            module=model,
            # Communication of later chunks overlaps with computation without being cut into buckets.
            disable_bucketing=index > 0 or args.overlap_param_gather_with_optimizer_step,
        )
        for index, model in enumerate(models)
    ]
    if args.data_parallel_random_init:
        for model in wrapped:
            model.broadcast_params()
    return wrapped


def unwrap(model: torch.nn.Module) -> GPTModel:
    """The GPTModel inside its wrappers."""
    while isinstance(model, (DistributedDataParallel, Float16Module)):
        model = model.module
    return model


@contextmanager
def parameters_gathered(args: argparse.Namespace, model: Sequence[DistributedDataParallel]) -> Iterator[None]:
    """Outside training steps nothing triggers --overlap-param-gather's all-gather: do it now, whole."""
    if args.overlap_param_gather:
        for chunk in model:
            chunk.disable_forward_pre_hook()
    yield
    if args.overlap_param_gather:
        for chunk in model:
            chunk.enable_forward_pre_hook()


def parameters_norm(model: Sequence[DistributedDataParallel]) -> float:
    """L2 norm of all parameters of the model, those that tensor parallel ranks share counted once."""
    square = torch.zeros((), device="cuda")
    for chunk in model:
        for parameter in chunk.parameters():
            split = tensor_parallel.param_is_not_tensor_parallel_duplicate(parameter)
            if split and not getattr(parameter, "shared", False):
                square += parameter.detach().float().pow(2).sum()
    dist.all_reduce(square, group=mpu.get_model_parallel_group())
    return square.sqrt().item()


def flops_per_token(args: argparse.Namespace, vocab_size: int) -> float:
    """Floating point operations of matrix products, forward and backward, for one token; 2 per multiply-add.

    The count of Narayanan et al. 2021 (arXiv:2104.04473, appendix) for any head size, number of query
    groups, gated MLP and top-k experts; the backward pass costs twice the forward pass.
    """
    hidden, length = args.hidden_size, args.sequence_length
    channels = args.kv_channels or hidden // args.num_attention_heads
    query = channels * args.num_attention_heads
    key_value = channels * (args.num_query_groups or args.num_attention_heads)
    attention = hidden * (query + 2 * key_value) + query * hidden + length * query
    matrices = 3 if args.swiglu or args.quick_geglu else 2
    if args.num_moe_experts:
        mlp = matrices * hidden * args.moe_ffn_hidden_size * args.moe_router_topk
    else:
        mlp = matrices * hidden * args.ffn_hidden_size
    return 3 * 2 * (args.num_layers * (attention + mlp) + hidden * vocab_size)
