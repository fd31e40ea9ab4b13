"""Tuned launches of the kernels, a file for each GPU and Triton version; see README.md."""
