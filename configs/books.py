"""The paper's Toronto BookCorpus model: the WikiText-103 network with one tied embedding of 29 thousand subwords.

The corpus itself is no longer distributed; `books/{train,valid,test}` are folders of books of your own, one UTF-8 file each
(other places: --data.train-path and so on). Its learning rate, batch and number of updates were not published: those of
WikiText-103 are kept here, for the paper takes its slopes and its architecture over as they were. BERT's vocabulary is replaced
by a BPE of the same size learned on the text.
"""

import dataclasses
import runpy
from pathlib import Path

from alibi_jax.config import Config, DataConfig, replace


def get_config() -> Config:
    """Returns the recipe's config."""
    base = runpy.run_path(str(Path(__file__).with_name("wikitext103.py")))["get_config"]()
    plain = replace(base, "model", vocab_size=None, adaptive_cutoffs=(), adaptive_dropout=0.0)
    data = DataConfig(
        source="files",
        train_path="books/train",
        valid_path="books/valid",
        test_path="books/test",
        tokenizer="bpe",
        bpe_vocab_size=28_992,  # BERT's 28,996, rounded to a multiple of 32 that divides over a mesh
    )
    return dataclasses.replace(plain, data=data)
