"""Two methods on the same model, quantizer and text: mean KL to full precision, and what their transforms cost online.

python docs/examples/compare_two_methods.py [MODEL] [METHOD] [METHOD]
"""

import sys

import sq


def main(model: str = "tiny", *methods: str) -> None:
    """A line for each method."""
    for method in methods or ("quarot", "singlequant"):
        found = sq.quantize(model, method=method, bits="w4a4", weights="rtn", task="perplexity")
        (kl,) = (value for name, value in found.metrics.items() if name.startswith("kl/"))
        macs = sum(site["multiply_adds"] for site in found.sites)
        print(f"{method:20} KL {kl:.4f} nats a token, {macs:,} multiply-adds a token online")


if __name__ == "__main__":
    main(*sys.argv[1:])
