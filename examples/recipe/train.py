"""The training run: builds everything, then iterates, logs, evaluates, saves, and stops when told to."""

from __future__ import annotations

import argparse
import gc
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

from megatron.core import optimizer as optimizers
from megatron.core.distributed import DistributedDataParallel
from megatron.core.num_microbatches_calculator import update_num_microbatches
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from . import distributed
from .arguments import optimizer_config, padded_vocab_size, transformer_config
from .checkpoint import Checkpointer, check_writable
from .data import Progress, build_loaders
from .errors import RecipeError
from .generate import generate
from .model import build_model, flops_per_token, parameters_gathered, parameters_norm
from .report import History, Reporter
from .step import Iterators, connect, evaluate, train_step
from .tokenizer import build_tokenizer


def build_scheduler(args: argparse.Namespace, optimizer: MegatronOptimizer) -> OptimizerParamScheduler:
    """Megatron-Core's learning rate and weight decay schedule, counted in samples.

    Raises:
        RecipeError: the warm-up is not over before the decay is.
    """
    if args.train_iters is not None:
        unit, whole = args.global_batch_size, args.train_iters
        decay, warmup, wsd = args.lr_decay_iters, args.lr_warmup_iters, args.lr_wsd_decay_iters
    else:
        unit, whole = 1, args.train_samples
        decay, warmup, wsd = args.lr_decay_samples, args.lr_warmup_samples, args.lr_wsd_decay_samples
    decay_steps = (decay or whole) * unit
    warmup_steps = warmup * unit
    if args.lr_warmup_fraction is not None:
        warmup_steps = args.lr_warmup_fraction * decay_steps
    if warmup_steps >= decay_steps:
        raise RecipeError(
            f"the learning rate warms up for {warmup_steps} samples and decays until {decay_steps}: give "
            "fewer --lr-warmup-iters (or -samples, -fraction) or more --lr-decay-iters"
        )
    return OptimizerParamScheduler(
        optimizer,
        init_lr=args.lr_warmup_init,
        max_lr=args.lr,
        min_lr=args.min_lr,
        lr_warmup_steps=warmup_steps,
        lr_decay_steps=decay_steps,
        lr_decay_style=args.lr_decay_style,
        start_wd=args.start_weight_decay,
        end_wd=args.end_weight_decay,
        wd_incr_steps=whole * unit,
        wd_incr_style=args.weight_decay_incr_style,
        use_checkpoint_opt_param_scheduler=args.use_checkpoint_opt_param_scheduler,
        override_opt_param_scheduler=args.override_opt_param_scheduler,
        wsd_decay_steps=None if wsd is None else wsd * unit,
        lr_wsd_decay_style=args.lr_wsd_decay_style,
    )


class StopSignal:
    """Remembers that SIGTERM came, so that the run can save between two iterations and end."""

    def __init__(self) -> None:
        self.received = False
        signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True


@dataclass
class Stop:
    """Why a run ends before its last iteration, if it does."""

    args: argparse.Namespace
    signal: StopSignal
    started: float

    def reason(self, progress: Progress) -> str | None:
        """The reason to save and end now; the same on all ranks; None to go on."""
        if distributed.any_rank(self.signal.received):
            return "SIGTERM"
        minutes = self.args.exit_duration_in_mins
        if minutes and distributed.any_rank((time.time() - self.started) / 60 > minutes):
            return f"--exit-duration-in-mins {minutes}"
        if self.args.exit_interval and progress.iteration % self.args.exit_interval == 0:
            return f"--exit-interval {self.args.exit_interval}"
        return None


def build_optimizer(args: argparse.Namespace, model: Sequence[DistributedDataParallel]) -> MegatronOptimizer:
    """Megatron-Core's optimizer; no weight decay for biases and norms, as in stock Megatron."""
    config = optimizer_config(args)
    if hasattr(optimizers, "get_standard_config_overrides"):
        overrides = optimizers.get_standard_config_overrides(config=config)
        return optimizers.get_megatron_optimizer(config, list(model), config_overrides=overrides)
    return optimizers.get_megatron_optimizer(config, list(model))


class Trainer:
    """A run: what is trained, what it is trained on, and how far it has come."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Builds everything and loads the checkpoint; needs `distributed.initialize`.

        Raises:
            RecipeError: files or flags that the user can put right.
        """
        self.args = args
        self.stop = Stop(args, StopSignal(), time.time())
        if args.save and distributed.is_first_rank():
            check_writable(args.save)
        self.tokenizer = build_tokenizer(args)
        config = transformer_config(args)
        self.model = build_model(args, config, self.tokenizer)
        self.optimizer = build_optimizer(args, self.model)
        self.scheduler = build_scheduler(args, self.optimizer)
        connect(args, config, self.model, self.optimizer)
        if args.train_iters is None:
            args.train_iters = args.train_samples // args.global_batch_size
        self.progress, self.history = Progress(), History()
        self.checkpointer = Checkpointer(
            args, self.model, self.optimizer, self.scheduler, self.progress, self.history
        )
        if args.load:
            self.checkpointer.load()
        update_num_microbatches(self.progress.consumed_train_samples, consistency_check=False)
        self.training, self.validation, self.test = build_loaders(args, self.tokenizer, self.progress)
        flops = flops_per_token(args, padded_vocab_size(self.tokenizer.vocab_size, args))
        self.reporter = Reporter(args, self.history, flops)

    def run(self) -> None:
        """Trains to the end or to a reason to stop; at the end evaluates, reports, continues the prompt."""
        args = self.args
        reason = None if args.skip_train else self.train()
        self.checkpointer.finish_saving(wait=True)
        if reason is None and args.eval_iters:
            self.evaluate(self.validation, "validation")
            if self.test[0] is not None:
                self.evaluate(self.test, "test")
        self.reporter.close()
        if reason is None and args.prompt:
            with parameters_gathered(args, self.model):
                text = generate(args, self.model, self.tokenizer, args.prompt)
            distributed.print_last(f"---- sample ----\n{text}\n---- end of sample ----")

    def train(self) -> str | None:
        """Iterates until --train-iters and saves; returns the reason if it stopped (and saved) before."""
        args, progress = self.args, self.progress
        if args.manual_gc:
            gc.disable()
        self.reporter.restart_clock()
        while progress.iteration < args.train_iters:
            update_num_microbatches(progress.consumed_train_samples)
            result = train_step(args, progress, self.training, self.model, self.optimizer, self.scheduler)
            # As Megatron prints it: the rate that the next iteration will use.
            rate = self.optimizer.param_groups[0]["lr"] if self.optimizer.param_groups else 0.0
            norm = parameters_norm(self.model) if args.log_params_norm else None
            self.reporter.iteration(progress, result, rate, self.optimizer.get_loss_scale().item(), norm)
            step = progress.iteration
            self.checkpointer.finish_saving(wait=False)
            if args.manual_gc and args.manual_gc_interval and step % args.manual_gc_interval == 0:
                gc.collect()
            if (
                args.eval_iters
                and args.eval_interval
                and step % args.eval_interval == 0
                and step < args.train_iters
            ):
                self.evaluate(self.validation, "validation")
            reason = self.stop.reason(progress) if step < args.train_iters else None
            due = args.save_interval and step % args.save_interval == 0
            if args.save and (due or reason or step == args.train_iters):
                self.save()
            if reason:
                distributed.print_last(f"stopping after iteration {step}: {reason}")
                return reason
        return None

    def save(self) -> None:
        """Saves a checkpoint of the present state."""
        with parameters_gathered(self.args, self.model):
            self.checkpointer.save()
        self.reporter.restart_clock()

    def evaluate(self, iterators: Iterators, where: str) -> None:
        """Evaluates on one split and reports it."""
        with parameters_gathered(self.args, self.model):
            loss = evaluate(
                self.args, self.progress, iterators, self.model, samples_counted=where == "validation"
            )
        self.reporter.evaluation(self.progress, loss, where)
