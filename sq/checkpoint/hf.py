"""transformers loads packed checkpoints: `import sq`, then `AutoModelForCausalLM.from_pretrained(FOLDER)`.

Imported while transformers itself is being imported (sq/checkpoint/register.py): what needs its models is imported
when used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

import sq
from sq.checkpoint.register import FORMAT, QUANT_METHOD
from sq.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register_quantization_config(QUANT_METHOD)
class SingleQuantConfig(QuantizationConfigMixin):
    """What config.json says of a packed model.

    Args:
        format, version: of the checkpoint and of the package that wrote it.
        recipe: what made the weights.
        layers: one description a layer, see sq/checkpoint/layer_data.py.
    """

    def __init__(self, format: int, version: str, recipe: dict[str, Any], layers: list[Any], **_: Any) -> None:
        self.quant_method: Any = QUANT_METHOD
        self.format, self.version, self.recipe, self.layers = format, version, recipe, layers

    def to_dict(self) -> dict[str, Any]:
        """As it was read."""
        names = ("quant_method", "format", "version", "recipe", "layers")
        return {name: getattr(self, name) for name in names}


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

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        from sq.checkpoint.layer_data import empty_layer, expect_guard
        from sq.checkpoint.packed_folder import check_files
        from sq.models.attention import ATTENTION
        from sq.models.families import family_of
        from sq.nn.generation import generate_in_int4

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
        if checkpoint_files:
            check_files(family, model, checkpoint_files)
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
