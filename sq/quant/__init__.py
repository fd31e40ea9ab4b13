"""Integer quantizers, clip search, RTN, GPTQ and nibble packing."""
