"""Megatron's command line filled from config.json."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mindspeed_ms.hf.config import Config, Flag
from mindspeed_ms.hf.errors import ConfigError
from mindspeed_ms.hf.families import family

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_LIMITS = frozenset({"max_position_embeddings"})
"""Flags that may also be given a smaller value than the model's."""


def fill(args: argparse.Namespace, folder: Path, argv: Sequence[str] | None = None) -> None:
    """Set the flags of the model in ``folder`` in Megatron's args, before they are validated.

    ``argv``: the command line (by default this process's), which tells a flag that was given from a default.
    Raises ConfigError if a flag that was given contradicts config.json, UnsupportedModelError for a model
    that Megatron-Core cannot express.
    """
    config = Config.read(folder)
    given = _given(sys.argv[1:] if argv is None else argv)
    flags = {flag.dest: flag for flag in _others(config)} | {f.dest: f for f in family(config).flags(config)}
    for flag in flags.values():
        dest = _DEST.get(flag.dest, flag.dest)
        if flag.dest in NEUTRAL and not hasattr(args, dest) and flag.value == NEUTRAL[flag.dest]:
            continue  # this release of Megatron does not have it
        if dest not in given:
            setattr(args, dest, flag.value)
        elif flag.fixed and not _fits(dest, getattr(args, dest), flag.value):
            _contradiction(config, flag, given[dest], getattr(args, dest))
    vocabulary = config.need("vocab_size")
    if (args.vocab_size or 0) > vocabulary:
        raise ConfigError(
            f"--vocab-size {args.vocab_size} contradicts vocab_size {vocabulary} in "
            f"{config.path}: leave the flag out"
        )
    multiple = args.make_vocab_size_divisible_by * args.tensor_model_parallel_size
    args.padded_vocab_size = math.ceil(vocabulary / multiple) * multiple
    _tokenizer(args, folder, vocabulary)


_DEST = {"norm_epsilon": "layernorm_epsilon"}
"""Megatron's flag -> the attribute of args that it sets, where the two have different names."""


NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("apply_layernorm_1p", "layernorm_zero_centered_gamma"), False),
    **dict.fromkeys(("apply_residual_connection_post_layernorm", "openai_gelu"), False),
    **dict.fromkeys(("squared_relu", "quick_geglu", "qk_layernorm", "qk_l2_norm"), False),
    **dict.fromkeys(("rotary_interleaved", "use_rope_scaling", "attention_output_gate"), False),
    **dict.fromkeys(("multi_latent_attention", "moe_apply_probs_on_input", "moe_router_pre_softmax"), False),
    **dict.fromkeys(("moe_router_enable_expert_bias", "moe_shared_expert_gate", "add_qkv_bias"), False),
    **dict.fromkeys(("window_size", "window_attn_skip_freq", "no_rope_freq", "num_experts")),
    **dict.fromkeys(("rotary_seq_len_interpolation_factor", "moe_router_topk_scaling_factor")),
    **dict.fromkeys(("moe_router_num_groups", "moe_router_group_topk", "activation_func_clamp_value")),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "experimental_attention_variant")),
    **dict.fromkeys(("heterogeneous_layers_config_path", "hybrid_layer_pattern")),
    "rotary_percent": 1.0,
    "moe_router_score_function": "softmax",
    "softmax_type": "vanilla",
    "glu_linear_offset": 0.0,
}
"""Attributes of args that change what a model computes, and the value with which they do nothing: that of
every model whose table says nothing of them."""


def _others(config: Config) -> Iterator[Flag]:
    because = f"model_type {config.kind}"
    yield from (Flag(dest, value, because) for dest, value in NEUTRAL.items())


def _given(argv: Sequence[str]) -> dict[str, str]:
    """Attribute of args -> the flag that sets it, of those on the command line."""
    from megatron.training.arguments import add_megatron_arguments

    known = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))._option_string_actions
    words = (word.partition("=")[0] for word in argv)
    return {known[word].dest: word for word in words if word in known}


def _fits(dest: str, value: Any, wanted: Any) -> bool:
    if dest == "moe_layer_freq" and isinstance(value, int) and not isinstance(value, bool):
        value = [int(layer % value == 0) for layer in range(len(wanted))]
    return value == wanted or (dest in _LIMITS and value <= wanted)


def _contradiction(config: Config, flag: Flag, option: str, value: Any) -> None:
    told = option if isinstance(value, bool) or value is None else f"{option} {value}"
    raise ConfigError(
        f"{told} contradicts {flag.because} in {config.path}: leave the flag out, or change the model"
    )


def _tokenizer(args: argparse.Namespace, folder: Path, vocabulary: int) -> None:
    """The tokenizer of the folder, unless another kind is asked for."""
    if args.tokenizer_type == "NullTokenizer" and args.vocab_size is None:
        args.vocab_size = vocabulary - 1  # it adds one for the end of a document
    if args.tokenizer_type not in (None, "HuggingFaceTokenizer") or args.tokenizer_model is not None:
        return
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ConfigError(f"{folder} holds no tokenizer: give --tokenizer-type, or put tokenizer.json there")
    args.tokenizer_type, args.tokenizer_model = "HuggingFaceTokenizer", str(folder)
