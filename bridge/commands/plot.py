"""``mindspeed-ms plot``: loss and gradient norm of a Megatron run as a picture."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mindspeed_ms.commands.errors import CommandError

HELP = "loss and gradient norm of a run, from its log or TensorBoard folder, as a PNG"

Curve = dict[int, float]
"""Iteration -> value."""

_LINE = re.compile(r"iteration +(\d+)/")
# Up to the bar that ends it: the last line of a run that goes on may be cut, and ranks write into each other.
_NUMBER = r"([-+]?\d+\.?\d*(?:[Ee][-+]?\d+)?|nan|-?inf) \|"
_VALIDATION = re.compile(
    rf"validation(?:-\d+)? loss at iteration (\d+)(?! on test set) .*?\| lm loss value: {_NUMBER}"
)
_LOGGED = {name: re.compile(rf"\| {name}: {_NUMBER}") for name in ("lm loss", "grad norm")}
_TAGS = {"lm loss": "lm loss", "grad-norm": "grad norm", "lm loss validation": "validation"}
"""Tag of Megatron in TensorBoard -> name here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``plot``."""
    parser.add_argument("run", type=Path, help="a log, or the folder of --tensorboard-dir")
    parser.add_argument(
        "--output", type=Path, metavar="PNG", help="default: beside the log, in the folder: loss.png"
    )


def read_log(text: str) -> dict[str, Curve]:
    """Name -> curve, of what Megatron's trainer prints: ``lm loss``, ``grad norm``, ``validation``."""
    curves: dict[str, Curve] = {name: {} for name in (*_LOGGED, "validation")}
    for line in text.splitlines():
        if found := _VALIDATION.search(line):
            curves["validation"][int(found[1])] = float(found[2])
        elif found := _LINE.search(line):
            for name, pattern in _LOGGED.items():
                if value := pattern.search(line):
                    curves[name][int(found[1])] = float(value[1])
    return curves


def read_events(folder: Path) -> dict[str, Curve]:
    """The same of TensorBoard's files below ``folder``, in float32 as they hold it."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise CommandError("reading events needs TensorBoard: pip install tensorboard") from error
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    there = [tag for tag in _TAGS if tag in events.Tags()["scalars"]]
    return {_TAGS[tag]: {event.step: event.value for event in events.Scalars(tag)} for tag in there}


def draw(curves: dict[str, Curve], output: Path) -> None:
    """Writes the picture: losses above, the norm of the gradient below where there is one."""
    try:
        import matplotlib
    except ImportError as error:
        raise CommandError("drawing needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [("loss per token (nats)", ("lm loss", "validation")), ("gradient norm", ("grad norm",))]
    panels = [panel for panel in panels if any(curves.get(name) for name in panel[1])]
    figure, rows = pyplot.subplots(len(panels), sharex=True, squeeze=False, figsize=(8, 1 + 3 * len(panels)))
    for axes, (title, names) in zip(rows[:, 0], panels, strict=True):
        for name in names:
            if points := sorted(curves.get(name, {}).items()):
                mark = "o-" if name == "validation" or len(points) < 30 else "-"
                axes.plot(*zip(*points, strict=True), mark, markersize=3, linewidth=1.2, label=name)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        axes.legend()
    rows[-1, 0].set_xlabel("iteration")
    rows[-1, 0].xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(output, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def execute(options: argparse.Namespace) -> int:
    """Draw the run. Raises CommandError where there is no loss in it."""
    run = options.run
    if not run.exists():
        raise CommandError(f"{run} does not exist: name a log or a folder of --tensorboard-dir")
    curves = read_events(run) if run.is_dir() else read_log(run.read_text(errors="replace"))
    losses = curves.get("lm loss")
    if not losses:
        raise CommandError(f"{run} has no losses: it is neither the log of a Megatron run nor its events")
    output = options.output or (run if run.is_dir() else run.parent) / "loss.png"
    if output.suffix != ".png" or output == run or not output.parent.is_dir():
        raise CommandError(f"{output} cannot be the picture: name a new .png in a folder that exists")
    draw(curves, output)
    first, last = min(losses), max(losses)
    print(f"{output}: loss {losses[first]:.4f} at iteration {first}, {losses[last]:.4f} at {last}")
    return 0
