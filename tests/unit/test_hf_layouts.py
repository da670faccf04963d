"""What tables of weights say, against the formulas of Megatron's own converters and of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mindspeed_ms.hf import ConfigError, UnsupportedModelError
from mindspeed_ms.hf.config import Config
from mindspeed_ms.hf.families import FAMILIES, family
from mindspeed_ms.hf.layouts import Rule, Sizes, columns, gated, qkv, rows, vocabulary
from mindspeed_ms.hf.plan import Place, Slot, _copies

SIZES = Sizes(layers=2, vocabulary=13, heads=8, groups=4, head=3)
WIDTH = 5


def filled(
    rule: Rule, stored: dict[str, torch.Tensor], height: int, width: int, place: Place
) -> torch.Tensor:
    """A rank's parameter, filled by the copies of a rule; nan where none is."""
    parameter = torch.full((height, width), float("nan"))
    for copy in _copies(Slot("p", 0, None, parameter, "p"), rule, "", SIZES, place):
        if copy.key:
            assert copy.shape == tuple(stored[copy.key].shape)
            copy.target.copy_(stored[copy.key][copy.source])
        else:
            copy.target.zero_()
    return parameter


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("form", ["apart", "together", "transposed"])
def test_fused_attention_input(ranks: int, form: str) -> None:
    q, k, v = torch.randn(24, WIDTH), torch.randn(12, WIDTH), torch.randn(12, WIDTH)
    # tools/checkpoint/saver_llama_mistral.py of Megatron-LM, the other way round
    parts = (t.reshape(4, -1, WIDTH) for t in (q, k, v))
    whole = torch.cat(list(parts), dim=1).reshape(-1, WIDTH)
    stored = {"q": q, "k": k, "v": v}
    rule = qkv("q", "k", "v")
    if form != "apart":
        one = torch.cat((q, k, v))
        stored = {"qkv": one.t().contiguous() if form == "transposed" else one}
        rule = qkv("qkv", transposed=form == "transposed")
    for rank, share in enumerate(whole.chunk(ranks)):
        assert filled(rule, stored, len(share), WIDTH, Place(ranks, rank)).equal(share)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("together", [False, True])
def test_gated_mlp(ranks: int, together: bool) -> None:
    gate, up = torch.randn(6, WIDTH), torch.randn(6, WIDTH)
    stored = {"gate_up": torch.cat((gate, up))} if together else {"gate": gate, "up": up}
    rule = gated("gate_up", "gate_up") if together else gated("gate", "up")
    for rank in range(ranks):
        expected = torch.cat((gate.chunk(ranks)[rank], up.chunk(ranks)[rank]))
        assert filled(rule, stored, len(expected), WIDTH, Place(ranks, rank)).equal(expected)


@pytest.mark.parametrize("padded", [16, 24])
def test_vocabulary_is_padded_with_zeros(padded: int) -> None:
    words = torch.randn(13, WIDTH)
    whole = torch.cat((words, torch.zeros(padded - 13, WIDTH)))
    for rank, share in enumerate(whole.chunk(4)):  # of 24, the last rank has padding only
        assert filled(vocabulary("w"), {"w": words}, padded // 4, WIDTH, Place(4, rank)).equal(share)


def test_rows_and_columns() -> None:
    matrix = torch.randn(6, 8)
    for rank in range(2):
        place = Place(2, rank)
        assert filled(rows("m"), {"m": matrix}, 3, 8, place).equal(matrix.chunk(2)[rank])
        assert filled(columns("m"), {"m": matrix}, 6, 4, place).equal(matrix.chunk(2, dim=1)[rank])
        stored = {"m": matrix.t().contiguous()}
        assert filled(columns("m", transposed=True), stored, 6, 4, place).equal(matrix.chunk(2, dim=1)[rank])


def test_experts_are_split_by_their_own_group() -> None:
    parameter = torch.empty(3, WIDTH)
    slot = Slot("p", 0, 7, parameter, "p")
    (copy,) = _copies(slot, rows("e.{}.w"), "layer.", SIZES, Place(tp=4, tp_rank=3, etp=2, etp_rank=1))
    assert (copy.key, copy.shape, copy.source[0]) == ("layer.e.7.w", (6, WIDTH), slice(3, 6))


LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 9,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
}


def flags(**own: object) -> dict[str, object]:
    config = Config(Path("config.json"), LLAMA | own)
    return {flag.dest: flag.value for flag in family(config).flags(config)}


def test_both_forms_of_rotary_embeddings_say_the_same() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    older = flags(rope_theta=5e5, rope_scaling=scaling)
    newer = flags(rope_parameters=scaling | {"rope_theta": 5e5})
    assert older == newer
    assert (older["rotary_base"], older["use_rope_scaling"], older["rope_scaling_factor"]) == (
        500000,
        True,
        8.0,
    )
    assert "use_rope_scaling" not in flags()


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type dynamic"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias True with mlp_bias False"),
        ({"model_type": "bloom"}, "a bloom model, which Megatron-Core cannot express: it has ALiBi"),
        ({"model_type": "nothing"}, "a nothing model, which is not known here"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised weights (fp8)"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(own: dict[str, object], said: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        flags(**own)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_config_without_an_entry_names_it(name: str) -> None:
    config = Config(Path("config.json"), {"model_type": name})
    with pytest.raises(ConfigError, match=f"has no .*, which a model of type {name} needs"):
        list(family(config).flags(config))
