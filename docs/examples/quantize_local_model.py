"""Quantize a model to 4 bits, write it as a packed checkpoint, load it with transformers, generate.

python docs/examples/quantize_local_model.py [MODEL] [FOLDER]    MODEL: a local folder, FILE.gguf, owner/name or tiny
"""

import sys

from transformers import AutoModelForCausalLM

import sq


def main(model: str = "tiny", folder: str = "packed") -> None:
    """Quantize, write, load, generate."""
    quantized = sq.quantize(model, method="singlequant", bits="w4a4", weights="rtn", packed=True)
    sq.save_packed(quantized.model, folder, quantized.tokenizer)

    loaded = AutoModelForCausalLM.from_pretrained(folder)
    prompt = quantized.tokenizer("def main(", return_tensors="pt")
    tokens = loaded.generate(**prompt, max_new_tokens=24, do_sample=False)
    print(quantized.tokenizer.decode(tokens[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
