"""One worker process: reads tasks, one JSON line each, from stdin and answers on stdout.

Task: ``{"op", "dtype", "variants", "samples", "route"}``. Answers: ``{"begin": variant}`` before a variant,
``{"row": ...}`` after it, ``{"done": true}`` after the task: the parent knows what a crash or hang was in.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from . import catalogue, checks


def main() -> None:
    # Operators may print: only this module writes to the pipe.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    operators = catalogue.operators()

    def answer(**message: object) -> None:
        answers.write(json.dumps(message) + "\n")

    answer(ready=True)
    for line in sys.stdin:
        task = json.loads(line)
        op, dtype = operators[task["op"]], getattr(torch, task["dtype"])
        with checks.routes.route(task["route"]):
            for variant in task["variants"]:
                answer(begin=variant)
                answer(row=checks.check(op, dtype, variant, task["samples"]).as_dict())
        answer(done=True)


if __name__ == "__main__":
    main()
