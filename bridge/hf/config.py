"""The entries of a config.json, asked for by name, and the flags of Megatron that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mindspeed_ms.hf.errors import ConfigError, UnsupportedModelError
from mindspeed_ms.hf.files import read_json

_ALSO = {
    "num_experts": "num_local_experts",
    "n_routed_experts": "num_local_experts",
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
"""Entries that transformers 5, or GPT-2, has under another name."""


_TIED = frozenset({"gpt2", "starcoder2", "smollm3", "ernie4_5"})
"""The architectures whose embeddings are tied unless config.json says otherwise."""


class Flag(NamedTuple):
    """An attribute of Megatron's args that the model sets, and the words of config.json that say so.

    ``fixed``: the weights are of no use with another value; otherwise it is a default for this model.
    """

    dest: str
    value: Any
    because: str
    fixed: bool = True


@dataclass(frozen=True)
class Config:
    """A config.json. ``values`` are its entries, with those of a nested ``text_config`` at the top."""

    path: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Config:
        """Of a folder. Raises ConfigError if there is none or it names no model."""
        values = read_json(folder / "config.json")
        if not isinstance(values.get("model_type"), str):
            raise ConfigError(f"{folder / 'config.json'} has no model_type: is it of a Hugging Face model?")
        return cls(folder / "config.json", values)

    @property
    def kind(self) -> str:
        """The architecture's name, ``model_type``."""
        return str(self.values["model_type"])

    def need(self, name: str) -> Any:
        """Entry ``name``. Raises ConfigError if it is missing or null."""
        if (value := self.get(name)) is None:
            raise ConfigError(f"{self.path} has no {name}, which a model of type {self.kind} needs")
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """Entry ``name``, or what some call it; ``default`` if it is missing or null."""
        for known in (name, _ALSO.get(name, name)):
            if self.values.get(known) is not None:
                return self.values[known]
        return default

    def flag(self, dest: str, name: str, default: Any = None) -> Flag:
        """``dest`` is what entry ``name`` says; without a default it must be there."""
        value = self.need(name) if default is None else self.get(name, default)
        return Flag(dest, value, f"{name} {value}")

    def refuse(self, what: str) -> None:
        """Raises UnsupportedModelError: ``what`` Megatron-Core has no equivalent of."""
        raise UnsupportedModelError(f"{self.path} asks for {what}, which Megatron-Core cannot express")

    def must(self, name: str, *values: Any, default: Any = None) -> None:
        """Refuse the model unless entry ``name`` is one of ``values``."""
        if (value := self.get(name, default)) not in values:
            self.refuse(f"{name} {value!r}")

    @property
    def tied(self) -> bool:
        """Whether the output matrix is the embedding; the class decides where config.json does not say."""
        return bool(self.get("tie_word_embeddings", self.kind in _TIED))

    def of_rope(self, name: str) -> Any:
        """Entry ``name`` of :attr:`rope`. Raises ConfigError if it is missing."""
        if (value := self.rope.get(name)) is None:
            kind = self.rope["rope_type"]
            raise ConfigError(f"{self.path} has no {name} for its rope_type {kind}, which needs one")
        return value

    @property
    def rope(self) -> dict[str, Any]:
        """What is said of rotary embeddings, in transformers 4's places or 5's."""
        found: dict[str, Any] = {}
        for name in ("rope_scaling", "rope_parameters"):
            said = self.get(name, {})
            if not isinstance(said, dict) or any(isinstance(value, dict) for value in said.values()):
                self.refuse(f"{name} {said!r}")
            found |= said
        found["rope_type"] = found.get("rope_type", found.get("type", "default"))
        found.setdefault("rope_theta", self.get("rope_theta", 10000.0))
        return found
