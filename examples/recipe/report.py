"""What a run shows: log lines in Megatron's form, TensorBoard, the history of losses and its plot."""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from megatron.core.num_microbatches_calculator import get_current_global_batch_size

from .data import Progress
from .distributed import is_last_rank, print_last
from .step import LOSS, StepResult


@dataclass
class History:
    """Losses of the whole run, resumed parts included: (iteration, mean loss per token), full precision."""

    train: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)

    def to_json(self) -> str:
        """As JSON: {"train": [[iteration, loss], ...], "validation": [...]}."""
        return json.dumps(vars(self)) + "\n"

    def from_json(self, text: str) -> None:
        """Takes over what `to_json` wrote."""
        for name, points in json.loads(text).items():
            setattr(self, name, [(iteration, loss) for iteration, loss in points])

    def plot(self, path: Path) -> None:
        """Writes the curves as a picture."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(8, 5))
        for name, style in (("train", "-"), ("validation", "o-")):
            points = getattr(self, name)
            if points:
                axes.plot(*zip(*points, strict=True), style, markersize=4, linewidth=1.2, label=name)
        axes.set_xlabel("iteration")
        axes.set_ylabel("loss per token (nats)")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=110, bbox_inches="tight")
        plt.close(figure)


class Reporter:
    """Collects iterations and reports them every --log-interval; speaks on the last rank only."""

    def __init__(self, args: argparse.Namespace, history: History, flops_per_token: float) -> None:
        self.args, self.history, self.flops_per_token = args, history, flops_per_token
        self._losses: list[float] = []
        self._skipped = self._samples = self._iterations = 0
        self._writer = None
        if args.tensorboard_dir and is_last_rank():
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(args.tensorboard_dir, max_queue=args.tensorboard_queue_size)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves what happened since the last log line (an evaluation, a save) out of the next one's time."""
        torch.cuda.synchronize()
        self._since = time.perf_counter()

    def _write(self, name: str, value: float | None, step: int) -> None:
        if self._writer is not None and value is not None:
            self._writer.add_scalar(name, value, step)

    def iteration(
        self, progress: Progress, result: StepResult, rate: float, scale: float, params_norm: float | None
    ) -> None:
        """Takes in one iteration; prints a line when one is due.

        Args:
            rate: learning rate of the next iteration.
            scale: loss scale.
            params_norm: norm of the parameters, with --log-params-norm.
        """
        args, step = self.args, progress.iteration
        self._iterations += 1
        self._samples += get_current_global_batch_size()
        self._skipped += result.skipped
        if result.loss is not None:
            self._losses.append(result.loss)
            self.history.train.append((step, result.loss))
        if step % args.tensorboard_log_interval == 0:
            self._write(LOSS, result.loss, step)
            self._write("learning-rate", rate, step)
            self._write("grad-norm", result.grad_norm, step)
            self._write("batch-size", get_current_global_batch_size(), step)
            if args.log_loss_scale_to_tensorboard:
                self._write("loss-scale", scale, step)
            if args.log_memory_to_tensorboard:
                self._write("mem-allocated-bytes", torch.cuda.memory_allocated(), step)
        if step % args.log_interval == 0:
            self._log(progress, result, rate, scale, params_norm)

    def _log(
        self, progress: Progress, result: StepResult, rate: float, scale: float, params_norm: float | None
    ) -> None:
        args, step = self.args, progress.iteration
        torch.cuda.synchronize()
        seconds = time.perf_counter() - self._since
        tokens_per_second = self._samples * args.sequence_length / seconds
        parts = [
            f" [{datetime.now():%Y-%m-%d %H:%M:%S}] iteration {step:8d}/{args.train_iters:8d}",
            f"consumed samples: {progress.consumed_train_samples:12d}",
            f"elapsed time per iteration (ms): {seconds * 1000 / self._iterations:.1f}",
        ]
        if args.log_throughput:
            rate_per_rank = tokens_per_second * self.flops_per_token / args.world_size / 1e12
            parts.append(f"throughput per GPU (TFLOP/s/GPU): {rate_per_rank:.3f}")
        parts += [
            f"learning rate: {rate:.6E}",
            f"global batch size: {get_current_global_batch_size():5d}",
        ]
        if self._losses:
            parts.append(f"{LOSS}: {sum(self._losses) / len(self._losses):.6E}")
        parts.append(f"loss scale: {scale:.1f}")
        if result.grad_norm is not None:
            parts.append(f"grad norm: {result.grad_norm:.3f}")
        if result.zeros_in_grad is not None:
            parts.append(f"num zeros: {result.zeros_in_grad}")
        if params_norm is not None:
            parts.append(f"params norm: {params_norm:.3f}")
        parts += [
            f"number of skipped iterations: {self._skipped:3d}",
            f"tokens/s: {tokens_per_second:.0f}",
        ]
        print_last(" | ".join(parts) + " |")
        if args.log_timers_to_tensorboard:
            self._write("iteration-time", seconds / self._iterations, step)
        self._losses.clear()
        self._skipped = self._samples = self._iterations = 0
        self.restart_clock()

    def evaluation(self, progress: Progress, loss: float | None, where: str) -> None:
        """Prints the loss of an evaluation on the `where` ("validation" or "test") split."""
        if loss is not None:
            perplexity = math.exp(min(20.0, loss))
            print_last(
                f" {where} loss at iteration {progress.iteration} | {LOSS} value: {loss:.6E} | "
                f"{LOSS} PPL: {perplexity:.6E} |"
            )
            if where == "validation":
                self.history.validation.append((progress.iteration, loss))
                self._write(f"{LOSS} validation", loss, progress.iteration)
                if self.args.log_validation_ppl_to_tensorboard:
                    self._write(f"{LOSS} validation ppl", perplexity, progress.iteration)
        self.restart_clock()

    def close(self) -> None:
        """Writes loss.json and loss.png into --report-dir (or --save) and ends TensorBoard's file."""
        target: Any = self.args.report_dir or self.args.save
        if target and is_last_rank() and self.history.train:
            Path(target).mkdir(parents=True, exist_ok=True)
            (Path(target) / "loss.json").write_text(self.history.to_json())
            self.history.plot(Path(target) / "loss.png")
            print(f"losses are in {target}/loss.json and {target}/loss.png", flush=True)
        if self._writer is not None:
            self._writer.close()
