"""Packed model folders, and their registration with transformers."""
