"""A method of your own: a class that returns a transform for each site. The pipeline does the rest.

python docs/examples/add_a_method.py        To have it as method=evened, write a YAML file beside those of conf/method.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import sq
from sq.models.site_transform import SiteTransform
from sq.quantize.method import LayerView, Method
from sq.rotation import Diagonal


@dataclass(frozen=True)
class Evened(Method):
    """Scale channels behind each norm by a power of their rms, 0 (nothing) to 1 (all channels alike)."""

    name: str = "evened"
    strength: float = 0.5

    def layer_transforms(self, layer: LayerView) -> Mapping[str, SiteTransform]:
        scales = {site: layer.statistics[site].rms.clamp(min=1e-5) ** -self.strength for site in ("qkv", "gate_up")}
        return {site: SiteTransform(folded=Diagonal(scale)) for site, scale in scales.items()}


def main() -> None:
    """The method at three strengths."""
    for strength in (0.0, 0.5, 1.0):
        own = ["method._target_=add_a_method.Evened", "method.name=evened", f"+method.strength={strength}"]
        found = sq.quantize("tiny", method="rtn", task="perplexity", overrides=own)
        print(f"strength {strength}: " + ", ".join(f"{k} {v:.4f}" for k, v in found.metrics.items() if k[:2] == "kl"))


if __name__ == "__main__":
    main()
