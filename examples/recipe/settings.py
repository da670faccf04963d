"""Settings that Megatron-Core has no config class for: those of the training loop around it.

Each field is a stock Megatron-LM flag (`train_iters` is `--train-iters`) with Megatron's default, read by the
same code that turns Megatron-Core's own config classes into flags; `ReportSettings` is the recipe's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class ModelSettings:
    """What GPTModel takes beside its TransformerConfig, and flags that stand for several config fields."""

    max_position_embeddings: int | None = None
    """Number of position embeddings; at least the sequence length."""

    position_embedding_type: Literal["learned_absolute", "rope", "none"] = "learned_absolute"
    """Kind of position embedding."""

    use_rotary_position_embeddings: bool = False
    """Old name of --position-embedding-type rope."""

    rotary_base: int = 10000
    """Base of the rotary position embedding."""

    rotary_percent: float = 1.0
    """Share of each head's channels that are rotated."""

    rotary_seq_len_interpolation_factor: int | None = None
    """Factor by which rotary positions are compressed."""

    use_rope_scaling: bool = False
    """Scale rotary frequencies as Llama 3 does."""

    rope_scaling_factor: float = 8.0
    """Factor of that scaling."""

    swiglu: bool = False
    """Gated linear units with SiLU instead of GELU."""

    squared_relu: bool = False
    """Squared ReLU instead of GELU."""

    quick_geglu: bool = False
    """Gated linear units with the sigmoid approximation of GELU."""

    group_query_attention: bool = False
    """Share keys and values between query heads; see --num-query-groups."""

    untie_embeddings_and_output_weights: bool = False
    """Give the output layer weights of its own."""

    recompute_activations: bool = False
    """Same as --recompute-granularity selective."""

    bias_gelu_fusion: bool = True
    """Fuse bias and GELU."""

    bias_swiglu_fusion: bool = True
    """Fuse bias and SwiGLU."""

    init_method_xavier_uniform: bool = False
    """Xavier initialisation instead of a normal distribution."""

    fp16_lm_cross_entropy: bool = False
    """Compute the cross entropy in fp16."""

    make_vocab_size_divisible_by: int = 128
    """The vocabulary is padded to a multiple of this times the tensor parallel size."""

    use_mcore_models: bool = True
    """Accepted and always on: there is no other model here."""


@dataclass
class DataSettings:
    """Where tokens come from."""

    data_path: list[str] | None = None
    """Prefix of a .bin/.idx pair; or weight prefix weight prefix ...; or prefix prefix ..."""

    train_data_path: list[str] | None = None
    """Like --data-path, for training only."""

    valid_data_path: list[str] | None = None
    """Like --data-path, for validation only."""

    test_data_path: list[str] | None = None
    """Like --data-path, for testing only."""

    mock_data: bool = False
    """Train on Megatron-Core's made-up data."""

    num_workers: int = 2
    """Processes that read data for a rank."""

    dataloader_type: Literal["single", "cyclic"] = "single"
    """Read samples in the dataset's order, or shuffled anew in every epoch."""

    tokenizer_type: Literal["GPT2BPETokenizer", "HuggingFaceTokenizer", "NullTokenizer"] = "GPT2BPETokenizer"
    """Kind of tokenizer."""

    tokenizer_model: str | None = None
    """HuggingFaceTokenizer: folder with tokenizer.json, or that file."""

    vocab_file: str | None = None
    """GPT2BPETokenizer: vocab.json."""

    merge_file: str | None = None
    """GPT2BPETokenizer: merges.txt."""

    vocab_size: int | None = None
    """Vocabulary size before padding and without the end-of-document token; NullTokenizer only."""


@dataclass
class TrainingSettings:
    """Batches, length of the run, learning rate schedule, evaluation."""

    micro_batch_size: int | None = None
    """Samples in one forward pass of one data parallel rank."""

    global_batch_size: int | None = None
    """Samples in one iteration; default: one micro batch for each data parallel rank."""

    rampup_batch_size: list[int] | None = None
    """Three numbers: first batch size, increment, samples over which to grow to the global batch size."""

    decrease_batch_size_if_needed: bool = False
    """Lower the global batch size to a multiple of micro batch size times data parallel size."""

    train_iters: int | None = None
    """Iterations to train."""

    train_samples: int | None = None
    """Samples to train, instead of --train-iters."""

    exit_interval: int | None = None
    """Save and end when the iteration is a multiple of this."""

    exit_duration_in_mins: int | None = None
    """Save and end after this many minutes."""

    exit_signal_handler: bool = False
    """Accepted and always on: SIGTERM saves and ends."""

    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = "linear"
    """Shape of the learning rate's decay."""

    lr_wsd_decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = "exponential"
    """Shape of the last phase of WSD."""

    lr_decay_iters: int | None = None
    """Iterations over which the learning rate decays; default: all."""

    lr_decay_samples: int | None = None
    """The same in samples."""

    lr_wsd_decay_iters: int | None = None
    """Iterations of the last phase of WSD."""

    lr_wsd_decay_samples: int | None = None
    """The same in samples."""

    lr_warmup_fraction: float | None = None
    """Share of the decay iterations that warm up."""

    lr_warmup_iters: int = 0
    """Iterations that warm up."""

    lr_warmup_samples: int = 0
    """The same in samples."""

    lr_warmup_init: float = 0.0
    """Learning rate at which the warmup starts."""

    start_weight_decay: float | None = None
    """First weight decay, with --weight-decay-incr-style."""

    end_weight_decay: float | None = None
    """Last weight decay."""

    weight_decay_incr_style: Literal["constant", "linear", "cosine"] = "constant"
    """How the weight decay moves from first to last."""

    eval_interval: int | None = 1000
    """Iterations between evaluations."""

    eval_iters: int = 100
    """Iterations of one evaluation; 0 for none."""

    skip_train: bool = False
    """Only evaluate."""

    manual_gc: bool = False
    """Collect garbage at set iterations only."""

    manual_gc_interval: int = 0
    """Iterations between collections."""


@dataclass
class ParallelSettings:
    """Processes and what Megatron-Core's configs leave to the caller."""

    distributed_backend: str = "nccl"
    """Backend of torch.distributed."""

    distributed_timeout_minutes: int = 10
    """After this a collective that does not finish is an error."""

    num_layers_per_virtual_pipeline_stage: int | None = None
    """Layers of one model chunk of the interleaved pipeline schedule."""

    num_virtual_stages_per_pipeline_rank: int | None = None
    """Model chunks of one pipeline rank, instead of the layers of one chunk."""

    enable_gloo_process_groups: bool = True
    """Give Megatron gloo groups beside the others."""

    use_tp_pp_dp_mapping: bool = False
    """Order ranks tp-cp-ep-pp-dp instead of tp-cp-ep-dp-pp."""

    data_parallel_random_init: bool = False
    """Initialise each data parallel rank with its own seed, then broadcast."""

    align_grad_reduce: bool = True
    """Start the gradient reduction of all pipeline ranks together."""

    ddp_num_buckets: int | None = None
    """Number of gradient buckets, instead of --ddp-bucket-size."""

    grad_reduce_in_bf16: bool = False
    """Reduce gradients in bf16 even though --bf16 asks for fp32."""


@dataclass
class LoggingSettings:
    """What is written where."""

    log_interval: int = 100
    """Iterations between log lines."""

    log_throughput: bool = False
    """Add TFLOP/s per device to the log line."""

    log_params_norm: bool = False
    """Add the norm of the parameters to the log line."""

    log_progress: bool = False
    """Append each save to progress.txt beside the checkpoints."""

    tensorboard_dir: str | None = None
    """Folder of the TensorBoard events."""

    tensorboard_log_interval: int = 1
    """Iterations between TensorBoard points."""

    tensorboard_queue_size: int = 1000
    """Events kept back before a flush."""

    log_timers_to_tensorboard: bool = False
    """Write the time of each iteration to TensorBoard."""

    log_validation_ppl_to_tensorboard: bool = False
    """Write the validation perplexity to TensorBoard."""

    log_memory_to_tensorboard: bool = False
    """Write the device's allocated memory to TensorBoard."""

    log_loss_scale_to_tensorboard: bool = True
    """Write the loss scale to TensorBoard."""

    timing_log_level: Literal[0, 1, 2] = 0
    """Accepted; iterations are timed as a whole."""


@dataclass
class CheckpointSettings:
    """Saving and loading."""

    save: str | None = None
    """Folder to save checkpoints in."""

    save_interval: int | None = None
    """Iterations between saves."""

    save_retain_interval: int | None = None
    """Keep only checkpoints whose iteration is a multiple of this, and the newest."""

    no_save_optim: bool = False
    """Save no optimizer state."""

    no_save_rng: bool = False
    """Save no random generator state."""

    load: str | None = None
    """Folder to load the newest checkpoint from; without one there, training starts at 0."""

    no_load_optim: bool = False
    """Load no optimizer state."""

    no_load_rng: bool = False
    """Load no random generator state."""

    finetune: bool = False
    """Load weights only and start at iteration 0."""

    ckpt_step: int | None = None
    """Load this iteration instead of the newest."""

    exit_on_missing_checkpoint: bool = False
    """A missing checkpoint is an error."""

    ckpt_format: Literal["torch_dist"] = "torch_dist"
    """Megatron-Core's distributed checkpoint format."""

    async_save: bool = False
    """Write checkpoints in other processes while training goes on."""

    ckpt_fully_parallel_save: bool = True
    """Spread the saving over data parallel ranks."""

    ckpt_fully_parallel_load: bool = False
    """Spread the loading over data parallel ranks."""

    dist_ckpt_strictness: str = "assume_ok_unexpected"
    """What a mismatch between model and checkpoint means; see megatron.core.dist_checkpointing."""

    dist_ckpt_optim_fully_reshardable: bool = False
    """Save the distributed optimizer so that another parallel layout can load it."""

    override_opt_param_scheduler: bool = False
    """Take the schedule from the flags, not from the checkpoint."""

    use_checkpoint_opt_param_scheduler: bool = False
    """Take the schedule from the checkpoint, not from the flags."""


@dataclass
class ReportSettings:
    """Not Megatron's: what the recipe leaves behind at the end."""

    report_dir: str | None = None
    """Folder of loss.png (the plot) and loss.json (all losses in full precision); default: --save."""

    prompt: str | None = None
    """Continue this text with the trained model at the end."""

    prompt_tokens: int = 64
    """Tokens to generate."""

    prompt_top_k: int = 1
    """Draw each token from this many most likely ones; 1 takes the most likely."""


SETTINGS = (
    ModelSettings,
    DataSettings,
    TrainingSettings,
    ParallelSettings,
    LoggingSettings,
    CheckpointSettings,
    ReportSettings,
)
