"""transformers loads packed checkpoints: `import sq`, then `AutoModelForCausalLM.from_pretrained(FOLDER)`.

Imported while transformers itself is being imported (sq/checkpoint/register.py): what needs its models is imported
when used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

import sq
from sq.checkpoint.register import FORMAT, QUANT_METHOD
from sq.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@register_quantization_config(QUANT_METHOD)
class SingleQuantConfig(QuantizationConfigMixin):
    """What config.json says of a packed model.

    Args:
        format, version: of the checkpoint and of the package that wrote it.
        recipe, run: what made the weights, and the identity of the run that did.
        layers: one description a layer, see sq/checkpoint/layer_data.py.
        others: digests, which sq/checkpoint/manifest.py reads from the file itself.
    """

    def __init__(
        self, format: int = 0, version: str = "", recipe: Any = None, layers: Any = (), run: str = "", **others: Any
    ) -> None:
        self.quant_method: Any = QUANT_METHOD
        self.format, self.version, self.recipe, self.layers, self.run = format, version, recipe, layers, run
        self.unknown = sorted(set(others) - {"quant_method", "files", "config_digest"})

    def to_dict(self) -> dict[str, Any]:
        """As it was read, without digests: `save_pretrained` writes other files."""
        names = ("quant_method", "format", "version", "recipe", "run", "layers")
        return {**{name: getattr(self, name) for name in names}, "files": None}


@register_quantizer(QUANT_METHOD)
class SingleQuantQuantizer(HfQuantizer):
    """Builds the packed modules on the meta device; transformers then fills them."""

    requires_calibration = True
    quantization_config: SingleQuantConfig

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Raise CheckpointError for a format that this version cannot read."""
        found = self.quantization_config
        if found.format != FORMAT:
            raise CheckpointError(
                f"the checkpoint has format {found.format}, written by version {found.version}; this is version "
                f"{sq.__version__}, which reads format {FORMAT}. Install the version that wrote it, or write it again"
            )
        if found.unknown or not isinstance(found.layers, list):
            wrong = f"unknown keys {found.unknown}" if found.unknown else "layers that are no list"
            raise CheckpointError(f"the checkpoint's quantization_config has {wrong}: it is damaged; fetch it again")

    def update_attn_implementation(self, config: PretrainedConfig) -> PretrainedConfig:
        """transformers shows the config here before it looks for files: our words to others are taken out of it."""
        from sq.checkpoint.by_name import without_keys

        return without_keys(config)

    update_tp_plan = update_attn_implementation  # what the first releases of transformers 5 call

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        from sq.checkpoint.layer_data import empty_layer, expect_guard
        from sq.checkpoint.manifest import check_folder
        from sq.checkpoint.packed_folder import check_files
        from sq.models.attention import ATTENTION
        from sq.models.families import family_of
        from sq.models.head_rows import lay_out_rows
        from sq.nn.generation import generate_in_int4

        if checkpoint_files:
            check_folder(Path(checkpoint_files[0]).parent)
        family, layers = family_of(model.config), self.quantization_config.layers
        if len(layers) != model.config.num_hidden_layers:
            count = model.config.num_hidden_layers
            raise CheckpointError(f"the checkpoint describes {len(layers)} layers, its config.json has {count}")
        dtype = model.dtype if isinstance(model.dtype, torch.dtype) else torch.float32
        for index, data in enumerate(layers):
            empty_layer(family, model.get_submodule(f"{family.layers}.{index}"), data, dtype)
        expect_guard(family, model.get_submodule(f"{family.layers}.0"))
        model.set_attn_implementation(ATTENTION)
        generate_in_int4(model)
        lay_out_rows(model.get_submodule(family.head))
        model.add_model_tags([QUANT_METHOD, "quantized"])  # of the card that its push_to_hub writes
        if checkpoint_files:
            check_files(family, model, checkpoint_files, tied=bool(model.config.tie_word_embeddings))
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        """Raise QuantizationError, which names the linear, for weights that no rounding makes (`QTensor.check`)."""
        from sq.nn.linear import PackedLinear

        for name, module in model.named_modules():
            if isinstance(module, PackedLinear):
                module.qweight.check(name)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """save_pretrained works too; `sq.save_packed` writes the same files as `run.py save_to=`."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Integers have no gradient."""
        return False
