"""Pretrains a GPT, or a hybrid with Mamba layers, with Megatron's own trainer; examples/*.sh are whole lines.

    mindspeed-ms run examples/pretrain_gpt.py FLAGS; on N ranks: torchrun --nproc-per-node N … in its place

What the trainer of Megatron-Core 0.19 must be given (model, batch, loss, data) is here; its wheel has more.
For older ones the script of the checkout at MEGATRON_LM_PATH runs. One import is all that is not for CUDA.
"""

import mindspeed_ms.patch  # noqa: F401, I001 - before torch.cuda and Megatron are used

import os
import runpy
import sys
from functools import partial

import torch
from megatron.core import mpu, package_info, utils

HAS_TRAINER = package_info.MINOR >= 19 or package_info.MAJOR
if HAS_TRAINER:
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
    from megatron.core.enums import ModelType
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.rerun_state_machine import get_rerun_state_machine
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
    from megatron.core.transformer.multi_token_prediction import get_mtp_ranks
    from megatron.training import argument_utils as configs
    from megatron.training import arguments, get_args, get_timers, pretrain, training
    from megatron.training.datasets.sft_dataset import SFTDataset
    from megatron.training.utils import get_blend_and_blend_per_split

FLAGS = {"random_seed": "seed", "sequence_length": "seq_length", "path_to_cache": "data_cache_path"}
FLAGS |= {"create_attention_mask": "create_attention_mask_in_dataloader"}  # else fields have the flag's name
FLAGS |= {n: f"dataloader_{n}" for n in ("fast_cache_load", "defer_npy_index_mmap", "inter_document_masking")}
REFUSED = ("fim_data", "logits_load_dir", "per_dataset_sequences_path")
REFUSED += ("check_for_spiky_loss", "inprocess_restart", "log_straggler")
KEYS = ("tokens", "position_ids", "attention_mask", "labels", "loss_mask")
PACKED = ("cu_seqlens", "cu_seqlens_padded", "max_seqlen", "local_cp_size", "hybrid_cp_group")


def datasets(samples, vp_stage=None):
    """The sets for training, validation and test, of so many samples each. Every rank reads for itself."""
    args = get_args()
    blends = dict(zip(("blend", "blend_per_split"), get_blend_and_blend_per_split(args), strict=True))
    names = {name: name for name in GPTDatasetConfig.__dataclass_fields__} | FLAGS
    config = GPTDatasetConfig(
        tokenizer=build_tokenizer(args),
        **blends,
        sequence_parallel_size=args.tensor_model_parallel_size * args.sequence_parallel,
        **{name: getattr(args, flag) for name, flag in names.items() if hasattr(args, flag)},
    )
    kind = SFTDataset if args.sft else MockGPTDataset if args.mock_data else GPTDataset
    return BlendedMegatronDatasetBuilder(kind, samples, lambda: True, config).build()


def get_batch(iterator):
    """This rank's share of the next micro-batch: a tensor or None for each of KEYS and PACKED."""
    found, args = next(iterator), get_args()
    given = {key: found[key].cuda(non_blocking=True) for key in KEYS + PACKED if found.get(key) is not None}
    whole = utils.flatten_batch_for_packed_sequences(dict.fromkeys(KEYS + PACKED) | given)
    groups = mpu.get_context_parallel_group(), mpu.get_hybrid_data_context_parallel_groups
    by_sequence = args.dataloader_inter_document_masking and not args.sft
    return utils.get_batch_on_this_cp_rank(whole, args.hybrid_context_parallel, *groups, by_sequence)


def packing(cu_seqlens, cu_seqlens_padded, max_seqlen, local_cp_size, hybrid_cp_group):
    """Where the sequences packed into a micro-batch begin, for attention; None when none are packed."""
    if cu_seqlens is None:
        return None
    starts, padded = (None if t is None else t.squeeze(0) for t in (cu_seqlens, cu_seqlens_padded))
    training.update_seqlen_stats_from_cu_seqlens(starts)
    bounds, longest = starts if padded is None else padded, int(max_seqlen.item())
    share = None if local_cp_size is None else int(local_cp_size.item())
    lengths = (bounds, bounds, padded, padded, longest, longest, share, hybrid_cp_group)
    total = {"total_tokens": int(bounds[-1].item())} if get_args().hybrid_layer_pattern else {}
    return PackedSeqParams("thd", *lengths, **total, tokens_per_sample=get_args().seq_length)


def loss_func(loss_mask, output):
    """Sum of the losses that count, how many they are, both for the log; stops at one that is not finite."""
    mask = loss_mask.view(-1).float()
    loss, tokens = torch.sum(output.view(-1).float() * mask), mask.sum().clone().detach().to(torch.int)
    if get_args().check_for_nan_in_loss_and_grad:
        wrong, message = lambda value: not torch.isfinite(value), "found NaN or Inf in local forward loss"
        get_rerun_state_machine().validate_result(loss, wrong, message, fatal=True)
    return loss, tokens, {"lm loss": torch.cat([loss.clone().detach().view(1), tokens.view(1)])}


def forward_step(iterator, model, return_schedule_plan=False):
    """One micro-batch through `model`: its output, and the function that makes the loss of it."""
    get_timers()("batch-generator", log_level=2).start()
    batch = get_batch(iterator)
    further = {"labels": batch["labels"], "loss_mask": batch["loss_mask"]}
    further["packed_seq_params"] = packing(*(batch[key] for key in PACKED))
    get_timers()("batch-generator").stop()
    call = model.build_schedule_plan if return_schedule_plan else model
    return call(*(batch[key] for key in KEYS[:3]), **further), partial(loss_func, batch["loss_mask"])


def embedding_ranks(ranks):
    """Those of a pipeline's ranks that hold the word embeddings."""
    tied = [] if get_args().untie_embeddings_and_output_weights else ranks[-1:]
    predicting = get_mtp_ranks(ranks, arguments.core_transformer_config_from_args(get_args()))
    return sorted({ranks[0], *tied, *predicting})


if __name__ == "__main__" and HAS_TRAINER:
    datasets.is_distributed = True
    args = arguments.parse_and_validate_args(args_defaults={"tokenizer_type": "GPT2BPETokenizer"})
    if lost := [f"--{flag.replace('_', '-')}" for flag in REFUSED if getattr(args, flag, None)]:
        sys.exit(f"{lost[0]} needs pretrain_gpt.py of a Megatron-LM checkout")
    make = configs.hybrid_config_from_args if args.hybrid_layer_pattern else configs.gpt_config_from_args
    parts = configs.pretrain_cfg_container_from_args(args, make(args)), datasets, ModelType.encoder_or_decoder
    pretrain(*parts, forward_step, get_embedding_ranks=embedding_ranks)
elif __name__ == "__main__":
    if not os.environ.get("MEGATRON_LM_PATH"):
        sys.exit("Megatron-Core before 0.19 has no trainer: set MEGATRON_LM_PATH to a Megatron-LM checkout")
    sys.path.insert(0, os.environ["MEGATRON_LM_PATH"])
    runpy.run_path(f"{sys.path[0]}/pretrain_gpt.py", run_name="__main__")
