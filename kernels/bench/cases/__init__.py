"""The rows of each kernel, one file an operation."""
