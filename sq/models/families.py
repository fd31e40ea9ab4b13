"""Decoder families as data: where the sites, norms and residual outputs of a model are. README.md explains the sites.

A family is one entry of `FAMILIES`; nothing else in the package knows a module's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from sq.errors import CheckpointError

if TYPE_CHECKING:  # the config check reads families, and need not wait 0.6 s for transformers
    from transformers import PretrainedConfig

SITES = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True)
class Family:
    """Names of one decoder family's parts; paths inside a decoder layer are relative to it.

    Attributes:
        linears: site -> the linears that read it, in the order GPTQ visits them.
        norms: site -> the RMSNorm in front of it, for sites fed by the residual stream.
        producers: site -> the linear whose output rows are the site's channels.
        residual_outputs: linears that write into the residual stream.
        head_norms: RMSNorms on q and k heads, between projection and RoPE (in that order); empty where there are none.
        attention, mlp: the modules that call the attention function, and compute down(act(gate(x)) up(x)).
        gguf_names: linears and norms of a layer -> their names in a GGUF file.
        gguf_interleaved: linears whose rows a GGUF file holds in pairs that RoPE turns.
    """

    model_type: str
    linears: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "o": ("self_attn.o_proj",),
            "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
            "down": ("mlp.down_proj",),
        }
    )
    norms: Mapping[str, str] = field(
        default_factory=lambda: {"qkv": "input_layernorm", "gate_up": "post_attention_layernorm"}
    )
    producers: Mapping[str, str] = field(default_factory=lambda: {"o": "self_attn.v_proj", "down": "mlp.up_proj"})
    residual_outputs: tuple[str, ...] = ("self_attn.o_proj", "mlp.down_proj")
    head_norms: tuple[str, ...] = ()
    attention: str = "self_attn"
    mlp: str = "mlp"
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    rotary: str = "model.rotary_emb"
    head: str = "lm_head"
    gguf_names: Mapping[str, str] = field(
        default_factory=lambda: {
            "self_attn.q_proj": "attn_q",
            "self_attn.k_proj": "attn_k",
            "self_attn.v_proj": "attn_v",
            "self_attn.o_proj": "attn_output",
            "mlp.gate_proj": "ffn_gate",
            "mlp.up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "ffn_norm",
            "self_attn.q_norm": "attn_q_norm",
            "self_attn.k_norm": "attn_k_norm",
        }
    )
    gguf_interleaved: tuple[str, ...] = ()


_PAIRED = ("self_attn.q_proj", "self_attn.k_proj")
FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama", gguf_interleaved=_PAIRED),
        Family("mistral", gguf_interleaved=_PAIRED),
        Family("qwen2"),
        Family("qwen3", head_norms=("self_attn.q_norm", "self_attn.k_norm")),
    )
}


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model's config; CheckpointError if the architecture has no entry in `FAMILIES`."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise CheckpointError(
            f"model_type {config.model_type!r} has no entry in sq.models.families.FAMILIES; supported: "
            f"{', '.join(FAMILIES)}. Add an entry and its invariance test (docs/extend.md, 'A family')."
        )
    return family


def check_layer(family: Family, layer: nn.Module) -> None:
    """Raise CheckpointError for a layer with linears or norms that the family's entry does not name, or without one."""
    named = {path for paths in family.linears.values() for path in paths}
    norms = {*family.norms.values(), *family.head_norms}
    linears = {name for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    owners = {name.rpartition(".")[0] for name, _ in layer.named_parameters()}
    missing, unknown = (named | norms) - owners, owners - named - norms
    if missing or unknown or linears != named:
        raise CheckpointError(
            f"a decoder layer of {family.model_type!r} does not match its entry in FAMILIES: missing "
            f"{sorted(missing) or 'nothing'}, unknown {sorted(unknown | (linears - named)) or 'nothing'}. This variant "
            "of the architecture needs an entry of its own."
        )


@dataclass(frozen=True)
class ModelDimensions:
    """Sizes of a decoder layer. heads * head_dim may differ from hidden (Qwen3-0.6B, 4B, 32B)."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> ModelDimensions:
        """Read the sizes from a transformers config."""
        heads = config.num_attention_heads
        return cls(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            layers=config.num_hidden_layers,
        )

    def width(self, site: str) -> int:
        """Number of features n of a site."""
        return {
            "qkv": self.hidden,
            "o": self.heads * self.head_dim,
            "gate_up": self.hidden,
            "down": self.intermediate,
        }[site]
