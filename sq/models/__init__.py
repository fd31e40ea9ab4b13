"""Decoder families as data, and the stream that reads one decoder layer at a time."""
