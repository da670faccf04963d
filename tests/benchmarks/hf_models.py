"""Small Hugging Face models in a stock Megatron-LM checkout, against transformers on the CPU in float32.

    python tests/benchmarks/hf_models.py --megatron-lm-path DIR [--quick] [--only TEXT] [--json FILE]

It needs transformers and safetensors. The models and layouts are in hf_cases.py; hf_worker.py is a rank. The
marks of a case: logits within 1e-5 of the largest, loss and gradients of one step within 1e-4, and a folder
written again whose tensors and config are bit for bit the same.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks import hf_cases  # noqa: E402
from tests.benchmarks.report import Report, arguments  # noqa: E402
from tests.reference.stock_script import train  # noqa: E402

WORKER = Path(__file__).with_name("hf_worker.py")
LIMITS = {"logits": 1e-5, "loss": 1e-4, "gradient": 1e-4}
QUICK = [("Llama 3.2, tied", "VPP"), ("Qwen3", "TP2"), ("Qwen3-MoE", "EP2"), ("DeepSeek-V3", "TP2")]
VIRTUAL = ("Llama 3.2, tied", "Qwen3-MoE", "DeepSeek-V3")
FULL = [
    (model, layout)
    for model in hf_cases.MODELS
    for layout in hf_cases.LAYOUTS
    if (layout != "EP2" or model in hf_cases.EXPERTS) and (layout != "VPP" or model in VIRTUAL)
]
FLAGS = (
    f"--seq-length {hf_cases.SEQUENCE} --micro-batch-size {hf_cases.BATCH} --train-iters 1 --lr 0 "
    "--tokenizer-type NullTokenizer --mock-data --moe-router-load-balancing-type none --rerun-mode disabled"
).split()


def main() -> int:
    """Run the cases; the exit code says whether every mark is met."""
    parser = arguments(__doc__)
    parser.add_argument("--megatron-lm-path", type=Path, required=True, metavar="DIR", help="a checkout")
    parser.add_argument("--only", action="append", metavar="TEXT", help="cases with TEXT in their name")
    options = parser.parse_args()
    report = Report("hf_models", "Hugging Face models in stock Megatron-LM, against transformers", options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        @cache
        def prepared(model: str) -> Path:
            made = folder / re.sub(r"\W+", "-", model)
            hf_cases.reference(hf_cases.build(model, made), made)
            return made

        for model, layout in QUICK if options.quick else FULL:
            if not options.only or any(text in f"{model}, {layout}" for text in options.only):
                measure(report, prepared(model), model, layout, options.megatron_lm_path.resolve())
    return report.finish()


def measure(report: Report, source: Path, model: str, layout: str, checkout: Path) -> None:
    """One row and its mark."""
    start = time.perf_counter()
    ranks, flags = hf_cases.LAYOUTS[layout]
    # under VPP a step has as many micro-batches as stages; under EP each rank has its own
    batch = hf_cases.BATCH * (2 if layout in ("EP2", "VPP") else 1)
    words = [*FLAGS, *flags.split(), "--global-batch-size", str(batch), "--load", f"hf:{source}"]
    where = {"MEGATRON_LM_PATH": str(checkout), "HF_SAVED": str(source / "saved")}
    run = train(WORKER, words, source, ranks=ranks, **where)
    match = re.search(r"RESULT (\{.*?\})", run.output)
    found = json.loads(match[1]) if match else {}
    worst = {name: found.get(name, float("inf")) for name in LIMITS}
    differ = found.get("differ", ["not written"])
    met = all(worst[name] <= limit for name, limit in LIMITS.items()) and not differ
    said = ", ".join(f"{name} {value:.1e}" for name, value in worst.items()) if found else run.error
    values = {name: value if match else None for name, value in worst.items()}
    seconds = round(time.perf_counter() - start, 1)
    report.row(model=model, layout=layout, **values, differ=len(differ), seconds=seconds)
    what = f"{model}, {layout}: as transformers, and bit for bit when written"
    print(f"{what}: {said}{'; ' + ', '.join(differ[:3]) if differ else ''}", flush=True)
    report.mark(what, met, said)


if __name__ == "__main__":
    sys.exit(main())
