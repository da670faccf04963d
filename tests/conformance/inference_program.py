"""Generates with a tiny Megatron-Core GPTModel, or saves and loads it; writes what came out, as JSON.

    inference_program.py generate|torch_dist|legacy FILE

Written for CUDA, like any Megatron script: it runs on npu, and on CPU under tests.reference.plain_torch.
"""

import mindspeed_ms.patch  # noqa: F401, I001
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gpt_program import BATCH, LENGTH, VOCABULARY, build
from megatron.core import dist_checkpointing, package_info, parallel_state, tensor_parallel
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.inference.engines import StaticInferenceEngine
from megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper import GPTInferenceWrapper
from megatron.core.inference.sampling_params import SamplingParams
from megatron.core.inference.text_generation_controllers.text_generation_controller import (
    TextGenerationController,
)
from megatron.core.models.gpt import GPTModel

PROMPTS = ("3 14 15 92", "6 5 35 89", "27 18")


class Numbers:
    """A tokenizer of numbers."""

    vocab_size, eod, bos = VOCABULARY, VOCABULARY - 1, None

    def tokenize(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def detokenize(self, tokens: list[int], **_: Any) -> str:
        return " ".join(map(str, tokens))

    def offsets(self, tokens: list[int], text: str) -> list[int]:
        return list(range(len(tokens)))


def wrapped(model: GPTModel) -> GPTInferenceWrapper:
    """As engines take it, which before 0.17 asked for the sizes in a config of their own."""
    if (package_info.MAJOR, package_info.MINOR) >= (0, 17):
        return GPTInferenceWrapper(model, StaticInferenceContext(len(PROMPTS), 2560))
    from megatron.core.inference.model_inference_wrappers import inference_wrapper_config

    options = inference_wrapper_config.InferenceWrapperConfig(
        hidden_size=model.config.hidden_size,
        inference_batch_times_seqlen_threshold=400,
        inference_max_requests=len(PROMPTS),
        fp32_residual_connection=False,
        params_dtype=torch.float32,
        padded_vocab_size=VOCABULARY,
    )
    return GPTInferenceWrapper(model, options, StaticInferenceContext.from_config(options))


def tokens(model: GPTModel, **sampling: Any) -> list[Any]:
    """Tokens and log probabilities of each prompt; a new engine draws from the same seed again."""
    controller = TextGenerationController(inference_wrapped_model=wrapped(model), tokenizer=Numbers())
    engine = StaticInferenceEngine(text_generation_controller=controller, max_batch_size=4, legacy=True)
    parameters = SamplingParams(num_tokens_to_generate=8, **sampling)
    found = engine.generate(list(PROMPTS), sampling_params=parameters)
    return [(r.generated_tokens.tolist(), r.generated_log_probs) for r in found]


def generate(model: GPTModel) -> dict[str, Any]:
    """Greedy tokens with their log probabilities; drawn tokens, twice from one seed."""
    greedy = tokens(model, top_k=1, return_log_probs=True)
    drawn = [tokens(model, top_k=0, top_p=0.9, temperature=1.5) for _ in range(2)]
    return {
        "greedy": [row for row, _ in greedy],
        "log_probabilities": [list(map(float, row)) for _, row in greedy],
        "drawn": [[row for row, _ in rows] for rows in drawn],
        "top_k": [row for row, _ in tokens(model, top_k=5)],
    }


def logits(model: GPTModel) -> list[float]:
    tokens = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH).remainder(VOCABULARY).cuda()
    positions = torch.arange(LENGTH, device="cuda").expand(BATCH, -1)
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool, device="cuda").triu(1)
    with torch.no_grad():
        return model(tokens, positions, mask).float().mean(1).flatten().cpu().tolist()


def save_and_load(model: GPTModel, form: str, folder: Path) -> dict[str, Any]:
    """What the model gives, and what another one gives before and after it loads."""
    torch.manual_seed(8)
    other = build().cuda().eval()
    found = {"saved": logits(model), "other": logits(other)}
    if form == "legacy":
        torch.save({"model": model.state_dict()}, folder / "model.pt")
        other.load_state_dict(torch.load(folder / "model.pt", weights_only=False)["model"])
    else:
        dist_checkpointing.save(model.sharded_state_dict(), str(folder))
        other.load_state_dict(dist_checkpointing.load(other.sharded_state_dict(), str(folder)))
    return {**found, "loaded": logits(other)}


def main(what: str, file: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    torch.manual_seed(7)
    tensor_parallel.model_parallel_cuda_manual_seed(7)
    model = build().cuda().eval()
    if what == "generate":
        found = generate(model)
    else:
        folder = file.with_suffix(".checkpoint")
        folder.mkdir()
        found = save_and_load(model, what, folder)
    file.write_text(json.dumps(found))
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
