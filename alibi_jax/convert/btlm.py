"""BTLM-3B-8k (Cerebras 2023) and Jais (Inception 2023): GPT-2's names, ALiBi, SwiGLU, maximal update parametrisation (muP).

Their weights are those of a Conv1D, [inputs, outputs]; the columns of c_attn are [queries | keys | values]. The MLP is
c_proj(c_fc(x) * silu(c_fc2(x))): its gate is c_fc2. muP multiplies embeddings and logits, and divides scores by the head width.
"""

from typing import Any

from alibi_jax.config import ModelConfig
from alibi_jax.convert.family import Architecture, Family, Tensor
from alibi_jax.convert.fields import Fields
from alibi_jax.convert.layouts import affine, blocks, constant, norm, same
from alibi_jax.errors import require, shown
from alibi_jax.positions import alibi_slopes


def architecture(fields: Fields) -> Architecture:
    """Returns the model that a BTLM or Jais config.json describes."""
    for name, value in {"position_embedding_type": "alibi", "activation_function": "swiglu"}.items():
        fields.take(str, name)  # has to be there: their classes' own defaults are GPT-2's
        fields.expect(name, value)
    fields.expect("scale_attn_weights", True)
    fields.expect("scale_attn_by_inverse_layer_idx", False)
    fields.expect("add_cross_attention", False)
    fields.expect("tie_word_embeddings", True)
    # they act in training alone, or say in which precision scores are computed
    fields.ignore("attn_pdrop", "embd_pdrop", "resid_pdrop", "reorder_and_upcast_attn")
    width = fields.take(int, "n_embd", "hidden_size")
    heads = fields.heads(width, "n_head", "num_attention_heads")
    divided_by_width = _either(fields, bool, "mup_scale_qk_dot_by_d", "scale_qk_dot_by_d", False)
    output_alpha = fields.take(float, "mup_output_alpha", default=1.0)
    divisor, slope_length = _slope_scaling(fields)
    model = ModelConfig(
        num_layers=fields.take(int, "n_layer", "num_hidden_layers"),
        width=width,
        num_heads=heads,
        mlp_width=fields.take((int, type(None)), "n_inner", default=None) or 4 * width,
        vocab_size=fields.take(int, "vocab_size"),
        norm_epsilon=float(fields.take(float, "layer_norm_epsilon", default=1e-5)),
        activation="silu",
        gated_mlp=True,
        embedding_multiplier=float(_either(fields, float, "mup_embeddings_scale", "embeddings_scale", 1.0)),
        logit_multiplier=float(output_alpha * _either(fields, float, "mup_width_scale", "width_scale", 1.0)),
        score_multiplier=(width // heads) ** -0.5 if divided_by_width else 1.0,
        slope_divisor=divisor,
        slope_length=slope_length,
    )
    positions = fields.take((int, type(None)), "n_positions", "max_position_embeddings", default=None)
    return Architecture(model, slope_length or positions)


def _either(fields: Fields, kind: type, name: str, earlier: str, default: Any) -> Any:
    """Returns the value of a key or of its earlier name; ConfigError where the file has both, and they differ."""
    if {name, earlier} <= set(fields.values):
        new, old = fields.values[name], fields.values[earlier]
        require(
            new == old,
            f"{fields.where}: {name}",
            f"{shown(new)} beside {earlier} {shown(old)}",
            f"the same: {earlier} is its earlier name",
            "Remove the wrong one from a copy of the file.",
        )
    return fields.take(kind, name, earlier, default=default)


def _slope_scaling(fields: Fields) -> tuple[float, int | None]:
    """Returns what divides all slopes, and the length in tokens beyond which an input's own length divides them as well."""
    values = fields.take((dict, type(None)), "alibi_scaling", default=None)
    if values is None:
        return 1.0, None
    scaling = Fields(values, f"{fields.where}: alibi_scaling")
    scaling.expect("type", "linear")
    divisor = scaling.take((float, type(None)), "factor", default=None)
    length = scaling.take((int, type(None)), "train_seq_len", default=None)
    scaling.refuse_rest()
    one = (divisor is None) != (length is None)
    require(one, scaling.where, shown(values), "one of factor and train_seq_len", "Correct a copy of the file.")
    return 1.0 if divisor is None else float(divisor), length


def _layer(i: int, model: ModelConfig) -> list[Tensor]:
    width, hidden, heads = (model.width,), (model.mlp_width,), (model.num_heads, model.head_width)
    name, path = f"h.{i}", f"layer_{i}"
    parts = [f"{path}/attention/{part}" for part in ("query", "key", "value")]
    return [
        *norm(f"{name}.ln_1", f"{path}/attention_norm", model.width),
        blocks(f"{name}.attn.c_attn.weight", parts, width, [heads] * 3, in_out=True),
        blocks(f"{name}.attn.c_attn.bias", [f"{part}_bias" for part in parts], (), [heads] * 3),
        *affine(f"{name}.attn.c_proj", f"{path}/attention/out", heads, width, in_out=True),
        *norm(f"{name}.ln_2", f"{path}/mlp_norm", model.width),
        *affine(f"{name}.mlp.c_fc", f"{path}/mlp/up", width, hidden, in_out=True),
        *affine(f"{name}.mlp.c_fc2", f"{path}/mlp/gate", width, hidden, in_out=True),
        *affine(f"{name}.mlp.c_proj", f"{path}/mlp/down", hidden, width, in_out=True),
    ]


def tensors(model: ModelConfig) -> list[Tensor]:
    """Returns the tensors of a BTLM or Jais checkpoint."""
    table = model.vocab_size, model.width
    return [
        same("wte.weight", "embedding/table", table),
        constant("relative_pe.slopes", alibi_slopes(model.num_heads)[:, None]),
        *(tensor for i in range(model.num_layers) for tensor in _layer(i, model)),
        *norm("ln_f", "final_norm", model.width),
        same("lm_head.weight", "embedding/table", table, tied=True),
    ]


_MASKS = r"h\.\d+\.attn\.(masked_)?bias"  # of which attention is causal
BTLM, JAIS = (
    Family(name, (name,), architecture, tensors, prefix="transformer.", harmless=_MASKS) for name in ("btlm", "jais")
)
