"""The language model: causal, of any length, the same however its layers are run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alibi_jax.config import Config, ModelConfig
from alibi_jax.errors import ConfigError, LengthError
from alibi_jax.model import TransformerLM
from alibi_jax.model.flops import forward_flops_per_token, peak_flops
from alibi_jax.positions.methods import POSITIONS
from conftest import TOLERANCE, assert_close

ANY_LENGTH = [name for name in POSITIONS if POSITIONS[name].from_config(ModelConfig()).longest() is None]
SMALL = {"num_layers": 2, "width": 32, "num_heads": 4, "mlp_width": 64, "vocab_size": 37}


TOKENS = np.random.default_rng(1).integers(0, 37, (2, 24), dtype=np.int32)


@functools.cache
def initial(config: ModelConfig):
    """Parameters before training, compiled once per config."""
    return jax.jit(TransformerLM(config).init)(jax.random.key(0), TOKENS)["params"]


def make(**changes):
    config = ModelConfig(**(SMALL | changes))
    return TransformerLM(config), dict(initial(config)), jnp.asarray(TOKENS)


@functools.cache
def compiled(model):
    """One program for each model: op by op, each little shape would be compiled alone."""
    return jax.jit(model.apply)


def logits(model, params, tokens, **options):
    run = jax.jit(functools.partial(model.apply, **options)) if options else compiled(model)
    return run({"params": params}, tokens)


@pytest.mark.parametrize("position", POSITIONS)
def test_no_gradient_reaches_a_logit_from_a_later_token(position):
    """Causality by gradient: d logits[t] / d embedding of token s is zero for s > t and not for s <= t."""
    model, params, tokens = make(position=position, tied_embedding=False, num_layers=1)
    tokens = jnp.arange(12)[None]  # all different, so that a row of the table is one place in the text

    def logit(params, t):
        return jnp.square(model.apply({"params": params}, tokens)[0, t]).sum()

    gradient = jax.jit(jax.grad(logit))
    for t in (0, 5, 11):
        reached = np.abs(gradient(params, t)["embedding"]["table"][:12]).max(-1) > 0
        assert reached.tolist() == [s <= t for s in range(12)]


@pytest.mark.parametrize("position", ANY_LENGTH)
def test_runs_at_any_length_and_a_prefix_gives_the_same_logits(position):
    model, params, _ = make(position=position, num_layers=1)
    tokens = jax.random.randint(jax.random.key(2), (1, 300), 0, 37)
    assert_close(logits(model, params, tokens)[:, :100], logits(model, params, tokens[:, :100]), "logits")


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("cutoffs", [(), (10, 20)], ids=["one cluster", "three clusters"])
def test_an_id_outside_the_vocabulary_is_refused_and_under_jit_gives_nan(cutoffs):
    model, params, tokens = make(adaptive_cutoffs=cutoffs)
    nats = functools.partial(model.apply, {"params": params}, method="nats")
    for wrong in (37, -1):
        changed = tokens.at[1, 5].set(wrong)
        for arguments, name in (((changed, tokens), "tokens"), ((tokens, changed), "targets")):
            with pytest.raises(ValueError, match=f"{name}: got token {wrong}, expected ids from 0 to 36"):
                nats(*arguments)
    as_input, as_target = jax.jit(lambda x, y: (nats(x, y), nats(y, x)))(tokens.at[1, 5].set(37), tokens)
    assert np.isnan(as_input[1, 5:]).all() and np.isfinite(as_input[0]).all()
    assert np.argwhere(np.isnan(as_target)).tolist() == [[1, 5]]
    with pytest.raises(ValueError, match="tokens: got float32, expected integers"):
        model.apply({"params": params}, jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"tokens: got shape \[4\], expected \[B, L\]"):
        model.apply({"params": params}, jnp.zeros(4, int))


def test_learned_positions_refuse_longer_inputs():
    model, params, _ = make(position="learned", learned_length=40)
    with pytest.raises(LengthError, match=r"41 tokens.*at most 40"):
        model.apply({"params": params}, jnp.zeros((1, 41), int))


@pytest.mark.parametrize("position", [name for name in POSITIONS if name != "none"])
def test_order_matters_to_every_method_beyond_the_causal_mask(position):
    """With one layer and no position, the last logit does not see the order of what precedes; with a method it does."""
    for name, differs in ((position, True), ("none", False)):
        model, params, tokens = make(position=name, num_layers=1)
        params["position"] = jax.tree.map(
            lambda x: jax.random.normal(jax.random.key(3), x.shape), params.get("position", {})
        )
        swapped = tokens.at[:, 3].set(tokens[:, 7]).at[:, 7].set(tokens[:, 3])
        last = [logits(model, params, t)[:, -1] for t in (tokens, swapped)]
        assert (float(jnp.abs(last[0] - last[1]).max()) > 1e-4) == differs


@pytest.mark.parametrize(("position", "remat"), [("alibi", True), ("t5", False)])
@pytest.mark.versions
def test_scan_and_remat_change_nothing(position, remat):
    """The same parameters, stacked, give the same loss and gradients through nn.scan, with and without nn.remat."""
    plain, params, tokens = make(position=position)
    scanned = TransformerLM(ModelConfig(**(SMALL | {"position": position, "scan_layers": True, "remat": remat})))
    stack = jax.tree.map(lambda *layers: jnp.stack(layers), params["layer_0"], params["layer_1"])
    stacked = {name: tree for name, tree in params.items() if not name.startswith("layer_")} | {"layers": stack}
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, make(position=position, scan_layers=True)[1])

    def loss(model, params):
        return jnp.square(model.apply({"params": params}, tokens)).mean()

    one, gradient = jax.jit(jax.value_and_grad(lambda p: loss(plain, p)))(params)
    other, stacked_gradient = jax.jit(jax.value_and_grad(lambda p: loss(scanned, p)))(stacked)
    assert_close(one, other, "logits")
    assert_close(stacked_gradient["layers"]["mlp"]["up"][1], gradient["layer_1"]["mlp"]["up"], "logits")
    assert_close(stacked_gradient["embedding"]["table"], gradient["embedding"]["table"], "logits")


def test_implementations_of_attention_agree_in_the_model():
    _, params, _ = make()
    tokens = jax.random.randint(jax.random.key(2), (2, 200), 0, 37)
    outs = [
        logits(TransformerLM(ModelConfig(**SMALL, attention=a)), params, tokens) for a in ("reference", "blockwise")
    ]
    assert_close(*outs, "logits")


def test_parameters_are_float32_dicts_and_bfloat16_computes_nearly_the_same():
    model, params, tokens = make()
    low = TransformerLM(ModelConfig(**SMALL, compute_dtype="bfloat16"))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert type(params) is dict
    full, half = (logits(m, params, tokens) for m in (model, low))
    assert full.dtype == half.dtype == jnp.float32
    error = float(jnp.abs(full - half).mean())
    assert 1e-5 < error < 0.03  # it did compute in bfloat16, and well


def test_options_change_the_parameters_they_name():
    def names(**changes):
        model = TransformerLM(ModelConfig(**(SMALL | changes)))
        shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
        leaves = jax.tree_util.tree_leaves_with_path(shapes)
        return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}

    assert names() - names(biases=()) == {
        f"layer_{i}/{name}"
        for i in range(2)
        for name in [f"attention/{x}_bias" for x in ("query", "key", "value", "out")] + ["mlp/up_bias", "mlp/down_bias"]
    }
    assert names() - names(final_norm=False) == {"final_norm/scale", "final_norm/bias"}
    assert names(tied_embedding=False) - names() == {"softmax/table"}
    assert names(position="t5") - names() == {"position/bucket_table"}


@pytest.mark.parametrize("field", ["embedding_dropout", "residual_dropout", "attention_dropout", "activation_dropout"])
def test_every_dropout_acts_in_training_only(field):
    model, params, tokens = make(**{field: 0.5}, num_layers=1)
    plain = logits(make(num_layers=1)[0], params, tokens)
    assert (logits(model, params, tokens) == plain).all()
    trained = logits(model, params, tokens, train=True, rngs={"dropout": jax.random.key(0)})
    assert float(jnp.abs(trained - plain).max()) > 1e-3


def test_embedding_scale_and_norm_against_numpy():
    """One layer of zeros: the logits are norm(sqrt(E) * embedding) times the embedding's transpose."""
    model, params, tokens = make(num_layers=1, position="none")
    params["layer_0"] = jax.tree.map(jnp.zeros_like, params["layer_0"])
    table = np.asarray(params["embedding"]["table"], np.float64)
    x = np.sqrt(32) * table[np.asarray(tokens)]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    assert_close(logits(model, params, tokens), x @ table.T, "logits")


ENCODERS = [name for name in POSITIONS if name != "t5"]  # whose buckets are those of causal attention


@pytest.mark.parametrize("position", ENCODERS)
def test_a_model_that_is_not_causal_sees_all_tokens(position):
    """By gradient: every logit depends on every token; and the attention is that of the definition."""
    changes = {"position": position, "causal": False, "tied_embedding": False, "num_layers": 1}
    params = make(**changes)[1]
    tokens = jnp.arange(12)[None]  # all different, so that a row of the table is one place in the text

    def total(params, attention):
        model = TransformerLM(ModelConfig(**(SMALL | changes), attention=attention))
        return jnp.square(model.apply({"params": params}, tokens)[0, 0]).sum()

    gradient = jax.jit(jax.grad(total), static_argnums=1)
    gradients = [gradient(params, name)["embedding"]["table"][:12] for name in ("blockwise", "reference")]
    assert (np.abs(gradients[0]).max(-1) > 0).all()
    assert_close(*gradients, "logits")


def test_t5_and_a_run_refuse_a_model_that_is_not_causal():
    with pytest.raises(ConfigError, match=r"model\.causal: got False, expected True for position 't5'"):
        ModelConfig(position="t5", causal=False)
    with pytest.raises(ConfigError, match=r"model\.causal: got False, expected True: a run trains and evaluates"):
        Config(model=ModelConfig(causal=False))


@pytest.mark.parametrize("position", POSITIONS)
def test_positions_passed_in_are_those_of_none_and_a_shift_shows_where_they_are_absolute(position):
    """Biases and rotations depend on distances alone; what is added to the embeddings on the positions themselves."""
    model, params, tokens = make(position=position, num_layers=1)
    run = jax.jit(lambda first: model.apply({"params": params}, tokens, first + jnp.arange(24)))
    plain = logits(model, params, tokens)
    assert_close(run(0), plain, "logits")
    changed = float(jnp.abs(run(10) - plain).max())
    assert changed > 1e-3 if position in ("sinusoidal", "learned") else changed < TOLERANCE["logits"]


@pytest.mark.usefixtures("shapes_unchecked")
def test_positions_that_are_not_consecutive_serve_methods_without_a_bias_alone():
    apart = jnp.arange(24).at[12:].add(5)
    for position in ("rotary", "sinusoidal", "none"):
        model, params, tokens = make(position=position, num_layers=1)
        moved = logits(model, params, tokens, positions=apart)
        changed = jnp.abs(moved - logits(model, params, tokens)).max((0, 2))
        assert float(changed[:12].max()) < TOLERANCE["logits"]
        assert (float(changed[12:].min()) > 1e-4) == (position != "none")
    model, params, tokens = make(num_layers=1)
    with pytest.raises(ValueError, match=r"positions: got 17 after 11, expected 12: a bias of distances"):
        model.apply({"params": params}, tokens, apart)
    assert np.isnan(jax.jit(model.apply)({"params": params}, tokens, apart)).all()


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("position", POSITIONS)
def test_positions_that_do_not_fit_are_refused_by_every_method(position):
    model, params, tokens = make(position=position, num_layers=1)
    for wrong in (jnp.arange(23), jnp.arange(24.0), jnp.int32(1), jnp.zeros((2, 24), int)):
        with pytest.raises(ValueError, match="for 24 tokens, expected one integer for each"):
            jax.eval_shape(functools.partial(model.apply, positions=wrong), {"params": params}, tokens)


def test_a_config_without_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size: got None"):
        TransformerLM(ModelConfig()).init(jax.random.key(0), jnp.zeros((1, 4), int))


@pytest.mark.parametrize("changes", [{}, {"causal": False}, {"num_kv_heads": 1, "gated_mlp": True}], ids=str)
@pytest.mark.versions
def test_flops_equal_the_compilers_count_of_the_dense_model(changes):
    """Within 10 %: the compiler also counts norms and the softmax, and the reference attends to all L keys."""
    sizes = {"width": 128, "mlp_width": 512, "vocab_size": 512}
    config = ModelConfig(**(SMALL | sizes | changes), attention="reference")
    model, length = TransformerLM(config), 16
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, length), int))
    lowered = jax.jit(model.apply).lower(shapes, jax.ShapeDtypeStruct((4, length), jnp.int32))
    counted = lowered.compile().cost_analysis()["flops"] / (4 * length)
    assert forward_flops_per_token(config, length) == pytest.approx(counted, rel=0.1)


def test_peaks_are_known_by_device_kind_and_unknown_ones_are_none():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("cpu") is None


def test_what_remat_keeps_is_not_done_again_and_changes_nothing():
    """The compiled gradient holds a forward attention less with "attention", and no product of the forward pass twice with
    "products"."""
    tokens, losses, counts = jnp.asarray(np.random.default_rng(0).integers(0, 50, (2, 144))), [], []
    for saves in (None, "inputs", "attention", "products"):
        remat = {} if saves is None else {"remat": True, "remat_saves": saves}
        config = ModelConfig(num_layers=2, width=32, num_heads=2, mlp_width=64, vocab_size=50, **remat)
        model = TransformerLM(dataclasses.replace(config, attention="blockwise", scan_layers=True))
        params = jax.jit(model.init)(jax.random.key(0), tokens)["params"] if saves is None else params

        def loss(params, model=model):
            return model.apply({"params": params}, tokens, tokens, method="nats").sum()

        if saves in (None, "products"):
            losses.append(jax.jit(jax.value_and_grad(loss))(params))
        jaxpr = str(jax.make_jaxpr(jax.grad(loss))(params))
        counts.append((jaxpr.count(" while["), jaxpr.count("dot_general")))
    for value, gradients in losses[1:]:
        assert_close(value / losses[0][0], 1.0, "loss")
        jax.tree.map(lambda x, y: assert_close(x, y, "attention gradient"), gradients, losses[0][1])
    none, inputs, attention, products = counts
    assert inputs[0] > attention[0] == products[0] == none[0], counts
    assert inputs[1] > attention[1] > products[1] >= none[1], counts
