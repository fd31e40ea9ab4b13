"""Baselines, one readable file a method, built from sq parts only."""
