"""The tokenizer of a GGUF file, converted once by transformers and kept in a cache."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import transformers
from tokenizers import Regex, Tokenizer, normalizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sq.errors import CheckpointError
from sq.io import atomic_folder
from sq.models.gguf_header import CONVERSION, GgufHeader, read_header

logger = logging.getLogger(__name__)

# Words of Llama 3 and Qwen 2, which differ in how many digits make one: contractions, letters, digits, signs, newlines.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = ("default", "gpt-2")
SMOLLM = ("smollm",)
LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "smaug-bpe")
QWEN2 = ("qwen2", "deepseek-r1-qwen")
KINDS = (*GPT2, *SMOLLM, *LLAMA3, *QWEN2)  # of tokenizer.ggml.pre


def gguf_tokenizer(path: Path, cache: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `<cache>/gguf-tokenizer-<hash>`, written there where it is not yet; seconds the first time.

    The hash covers the file's header, which holds the vocabulary, and the version of transformers. A cache that cannot
    be written is reported by the logger. CheckpointError is raised for a vocabulary that transformers cannot convert,
    and for byte pairs (tokenizer.ggml.model gpt2) of words that are not in KINDS.
    """
    header = read_header(path)
    folder = cache / f"gguf-tokenizer-{_digest(header)}"
    if folder.is_dir():
        kept: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        return kept
    found = _converted(header)
    try:
        with atomic_folder(folder) as temporary:
            found.save_pretrained(temporary)
    except OSError as error:
        logger.warning("tokenizer cache %s was not written (%s); the next run converts again", folder, error)
    return found


def _converted(header: GgufHeader) -> PreTrainedTokenizerBase:
    path, kind = header.path, header.metadata.get("tokenizer.ggml.pre")
    byte_pairs = header.metadata.get("tokenizer.ggml.model") == "gpt2"
    if byte_pairs and kind not in KINDS:
        raise CheckpointError(
            f"{path} has byte pairs of words that tokenizer.ggml.pre={kind} cuts; known: {', '.join(KINDS)}. Use a "
            "folder with the model's tokenizer.json and safetensors."
        )
    try:
        found = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (OSError, ValueError, KeyError, NotImplementedError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} has no tokenizer that transformers can convert: {reason}") from error
    backend = found.backend_tokenizer
    if byte_pairs:
        _cut_words(backend, str(kind))
    # A class of no family: those of families put rules of their own in the place of the file's when they are read back.
    own = {name: token for name, token in found.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=found.chat_template, **own)


def _cut_words(tokenizer: Tokenizer, kind: str) -> None:
    """What transformers does by its version and the architecture's name, done by what the file says."""
    if kind in GPT2:
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    elif kind in SMOLLM:
        tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    else:
        words = Split(Regex(_WORDS % ("{1,3}" if kind in LLAMA3 else "")), behavior="isolated")
        tokenizer.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    if kind in QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    if kind in LLAMA3:
        tokenizer.model.ignore_merges = True  # a word that is in the vocabulary is one token


def _digest(header: GgufHeader) -> str:
    digest = hashlib.sha256(f"{CONVERSION} {transformers.__version__}".encode())
    with header.path.open("rb") as stream:
        digest.update(stream.read(header.data))
    return digest.hexdigest()[:16]
