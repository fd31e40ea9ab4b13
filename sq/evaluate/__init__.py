"""Perplexity, divergence from the full-precision model, zero-shot tasks."""
