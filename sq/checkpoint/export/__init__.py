"""Model folders in compressed-tensors' format, which transformers and vLLM read without this package."""
