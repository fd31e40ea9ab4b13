"""What a number becomes: formats as data, the codes of a tensor, clip search and packing.

Labels and formats are plain data; nothing in this file imports torch."""
