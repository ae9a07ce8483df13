"""How many bytes of text each token of the `tokenizers` library stands for, as its decoder spells it."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from alibi_jax.errors import DataError

if TYPE_CHECKING:  # imported where it is used, as a model can be trained where it is not installed
    from tokenizers import Tokenizer

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token that stands for one byte, where there is a ByteFallback
CHILDREN = "normalizers", "pretokenizers", "decoders"  # of a Sequence


def components(component: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yields a normalizer, pre-tokenizer or decoder as JSON, or those that it is a sequence of."""
    if component and component["type"] == "Sequence":
        for child in next(component[name] for name in CHILDREN if name in component):
            yield from components(child)
    elif component:
        yield component


class Spelling(NamedTuple):
    """How tokens are written in a vocabulary: a letter a byte, or as they are but for a mark in place of each space."""

    letters: frozenset[str] = frozenset()  # of byte-level tokens, each for one byte
    space: str = " "  # what stands for a space
    byte_tokens: bool = False  # whether <0x00> ... <0xFF> stand for one byte

    def num_bytes(self, token: str) -> int:
        """Returns the UTF-8 bytes of text that a token of the vocabulary stands for."""
        if self.letters and self.letters.issuperset(token):
            return len(token)
        return 1 if self.byte_tokens and BYTE.fullmatch(token) else self.text_bytes(token)

    def text_bytes(self, text: str) -> int:
        """Returns the UTF-8 bytes of a text whose spaces are marked."""
        return len(text.replace(self.space, " ").encode("utf-8"))


def spelling_of(library: dict[str, Any]) -> Spelling:
    """Returns the spelling of a tokenizer's JSON; DataError for a decoder whose tokens have no bytes of their own."""
    from tokenizers import pre_tokenizers

    listed = list(components(library.get("decoder")))
    decoders = {decoder["type"]: decoder for decoder in listed}
    if decoders.keys() in ({"ByteLevel"}, {"ByteLevel", "Fuse"}):
        return Spelling(letters=frozenset(pre_tokenizers.ByteLevel.alphabet()))
    space = decoders.get("Metaspace", {}).get("replacement", " ")
    replaced = decoders.get("Replace", {"pattern": {"String": space}, "content": " "})
    known = decoders.keys() <= {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"} and len(decoders) == len(
        listed
    )
    if known and decoders.keys() & {"Metaspace", "ByteFallback"} and replaced["content"] == " ":
        return Spelling(space=replaced["pattern"].get("String", space), byte_tokens="ByteFallback" in decoders)
    raise DataError(
        f"data.tokenizer_path: got a tokenizer whose decoder is {' and '.join(decoders) or 'none'}, expected ByteLevel, or "
        "Metaspace or ByteFallback with a mark for spaces: how many bytes its tokens stand for is not known otherwise. Use "
        "another tokenizer."
    )


def token_bytes(model: "Tokenizer", library: dict[str, Any]) -> Int32[np.ndarray, " V"]:
    """Returns the UTF-8 bytes of text that each id stands for: 0 for special ones and for ids without a token.

    An added token stands for its own letters, as the normalizer leaves them where it is looked for in normalized text.
    """
    spelling = spelling_of(library)
    vocabulary = model.get_vocab()
    counts = np.zeros(max(vocabulary.values(), default=-1) + 1, np.int32)
    for token, number in vocabulary.items():
        counts[number] = spelling.num_bytes(token)
    # the library drops empty ones
    added = [token for token in library.get("added_tokens", ()) if token["content"] in vocabulary]
    for token in added:
        content = normalized(model, token["content"]) if token["normalized"] else token["content"]
        counts[vocabulary[token["content"]]] = 0 if token["special"] else spelling.text_bytes(content)
    return counts


def normalized(model: "Tokenizer", text: str) -> str:
    """Returns a text as the tokenizer's normalizer leaves it."""
    return model.normalizer.normalize_str(text) if model.normalizer else text
