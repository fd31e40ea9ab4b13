"""Modules of a quantized model: linears, what stands in front of them, attention and the KV cache."""
