"""A foreign config.json, of which every key is used, known to be harmless, or refused."""

import json
from collections.abc import Mapping
from typing import Any

from alibi_jax.errors import ConfigError, require, shown

REQUIRED: Any = object()
# of any config of transformers, the settings of generation and of GPT-2's classifying heads among them: they change nothing
# that the parameters compute
HARMLESS = {
    "_attn_implementation_autoset",
    "_commit_hash",
    "_from_model_config",
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "use_bfloat16",
    "use_cache",
}


class Fields:
    """The keys of one object of a config.json; `where` is what messages call it."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = dict(values), where
        self.left = set(self.values) - HARMLESS

    def take(self, kind: type | tuple[type, ...], *names: str, default: Any = REQUIRED) -> Any:
        """Returns the value of the first of these names that is there; names after the first are older ones of the same key.

        ConfigError where none is there and no default is named, and for a value of another kind.
        """
        self.left -= set(names)
        name = next((name for name in names if name in self.values), None)
        if name is None:
            require(default is not REQUIRED, f"{self.where}: {names[0]}", "no such key", "it", "Complete the file.")
            return default
        value = self.values[name]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        kinds += (int,) if float in kinds else ()
        fits = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
        names_of_kinds = " or ".join(each.__name__ for each in kinds)
        require(fits, f"{self.where}: {name}", shown(value), f"a value of type {names_of_kinds}", "Correct the file.")
        return value

    def heads(self, width: int, *names: str) -> int:
        """Returns the number of heads; names as in `take`. ConfigError unless it divides the width, in channels."""
        number = self.take(int, *names)
        name = next(name for name in names if name in self.values)
        fits = 0 < number <= width and width % number == 0
        require(fits, f"{self.where}: {name}", number, f"a divisor of the width, {width}", "Correct the file.")
        return number

    def expect(self, name: str, *allowed: Any) -> None:
        """Raises ConfigError for a value of this key that is not implemented; one that is absent is the first allowed."""
        self.left -= {name}
        value = self.values.get(name, allowed[0])
        if value not in allowed or isinstance(value, bool) not in {isinstance(each, bool) for each in allowed}:
            wanted = " or ".join(json.dumps(each) for each in allowed)
            raise ConfigError(
                f"{self.where}: {name}: got {json.dumps(value)}, expected {wanted}: nothing else is implemented for this "
                "family. The model cannot be imported exactly."
            )

    def ignore(self, *names: str) -> None:
        """Marks keys as harmless: they change nothing that the parameters compute."""
        self.left -= set(names)

    def refuse_rest(self) -> None:
        """Raises ConfigError for keys that nobody has taken, expected or ignored, and names all."""
        names = ", ".join(sorted(self.left))
        require(
            not self.left,
            self.where,
            f"unknown keys: {names}",
            "keys whose meaning is known: any other may change what the model computes",
            "If they change nothing, remove them from a copy of the file.",
        )
