"""Adaptive input and softmax: the paper's model to the parameter, and against float64 to the rounding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import paper_model
from alibi_jax.config import Config, MeshConfig, ModelConfig, TrainConfig, load_config
from alibi_jax.errors import ConfigError
from alibi_jax.model import TransformerLM
from alibi_jax.model.placement import tree_shardings
from alibi_jax.model.transformer import implementation
from alibi_jax.positions import LinearBias, alibi_slopes
from alibi_jax.positions.alibi import Alibi
from alibi_jax.sharding import check_mesh, make_mesh
from conftest import TOLERANCE, assert_close

CUTOFFS = (30, 60)
PAPER = {"num_layers": 2, "width": 32, "num_heads": 8, "mlp_width": 128, "final_norm": False, "vocab_size": 101}
PAPER |= {"adaptive_cutoffs": CUTOFFS, "adaptive_factor": 4}


def make(**changes):
    """The paper's architecture in small, with parameters that leave nothing at zero or one."""
    model = TransformerLM(ModelConfig(**(PAPER | changes)))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, noisy)
    # log-probabilities of a trained model's size, above -25: at -70, where new tied ones go, one float32 ulp is 8e-6
    params["embedding"] = {n: x * (0.4 if "table" in n else 1.0) for n, x in params["embedding"].items()}
    return model, params


def apply(model, params, *inputs, **options):
    """Compiled as one program: op by op, each little shape would be compiled alone."""
    return jax.jit(functools.partial(model.apply, **options))({"params": params}, *inputs)


def checkpoint(params):
    """The parameters under the names and in the layout of the reference's checkpoints."""
    width = params["softmax"]["classes"].shape[1]
    state = {"adaptive_softmax.head.word_proj": params["embedding"]["table_0"]}
    state["adaptive_softmax.head.class_proj"] = params["softmax"]["classes"]
    for b in range(len(CUTOFFS) + 1):
        table, projection = (params["embedding"][f"{name}_{b}"] for name in ("table", "projection"))
        state |= {f"embed_tokens.embeddings.{b}.0": table, f"embed_tokens.embeddings.{b}.1": projection.T}
        if b > 0:
            state |= {f"adaptive_softmax.tail.{b - 1}.0": projection.T, f"adaptive_softmax.tail.{b - 1}.2": table}
    state = {f"{name}.weight": value for name, value in state.items()}
    norms, matrices = (
        {"attention_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm"},
        {"up": "fc1", "down": "fc2"},
    )
    for i in range(sum(name.startswith("layer_") for name in params)):
        layer, at = params[f"layer_{i}"], f"layers.{i}"
        for name, theirs in {"query": "q_proj", "key": "k_proj", "value": "v_proj"}.items():
            state[f"{at}.self_attn.{theirs}.weight"] = layer["attention"][name].reshape(width, width).T
            state[f"{at}.self_attn.{theirs}.bias"] = layer["attention"][f"{name}_bias"].reshape(width)
        state[f"{at}.self_attn.out_proj.weight"] = layer["attention"]["out"].reshape(width, width).T
        state[f"{at}.self_attn.out_proj.bias"] = layer["attention"]["out_bias"]
        for name, theirs in norms.items():
            state |= {f"{at}.{theirs}.weight": layer[name]["scale"], f"{at}.{theirs}.bias": layer[name]["bias"]}
        for name, theirs in matrices.items():
            state |= {
                f"{at}.{theirs}.weight": layer["mlp"][name].T,
                f"{at}.{theirs}.bias": layer["mlp"][f"{name}_bias"],
            }
    return {f"decoder.{name}": np.asarray(value, np.float64) for name, value in state.items()}


@pytest.mark.parametrize(
    ("position", "length"),
    [
        ("alibi", 128),
        ("alibi", 384),
        ("none", 384),
        ("sinusoidal", 32),
    ],  # sines of float32 angles are off by 1e-7 of the angle
)
def test_log_probabilities_equal_an_independent_float64_model(position, length):
    model, params = make(position=position)
    tokens = np.random.default_rng(2).integers(0, PAPER["vocab_size"], length + 1)
    options = {"num_heads": 8, "cutoffs": CUTOFFS, "position": position}
    expected = paper_model.log_probabilities(checkpoint(params), tokens[:-1], **options)
    assert_close(apply(model, params, tokens[None, :-1])[0], expected, "paper")
    nats = apply(model, params, tokens[None, :-1], tokens[None, 1:], method="nats")[0]
    assert_close(nats, -expected[np.arange(length), tokens[1:]], "paper")


def test_the_wikitext103_recipe_has_the_papers_parameters_at_every_length():
    config = load_config("configs/wikitext103.py")
    for position, more in [("alibi", 0), ("sinusoidal", 0), ("rotary", 0), ("none", 0), ("t5", 32 * 8)]:
        model = TransformerLM(dataclasses.replace(config.model, position=position))
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64), int))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 246_933_504 + more
    assert config.train.train_length * config.train.batch_size == 73_728


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"tied_embedding": False}, {f"softmax/table_{b}" for b in range(3)}),
        ({"tied_projections": False}, {f"softmax/projection_{b}" for b in (1, 2)}),
    ],
)
def test_untied_tables_and_projections_have_parameters_of_their_own(changes, names):
    def paths(params):
        return {
            jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree_util.tree_leaves_with_path(params)
        }

    model, params = make(**changes, num_layers=1)
    assert paths(params) - paths(make(num_layers=1)[1]) == names
    tokens = jnp.arange(24).reshape(2, 12)
    assert_close(jnp.exp(apply(model, params, tokens)).sum(-1), np.ones((2, 12)), "logits")
    gradient = jax.jit(jax.grad(lambda p: apply(model, p, tokens, 4 * tokens + 5, method="nats").sum()))(params)
    for name in names:
        room, leaf = name.split("/")
        assert float(jnp.abs(gradient[room][leaf]).max()) > 0


def test_new_parameters_are_drawn_as_the_recipe_says():
    """Embeddings N(0, width^-0.5) by cluster; projections, classes and `out` Xavier-uniform; q, k, v with gain 1/sqrt(2)."""
    sizes = {"width": 128, "mlp_width": 256, "vocab_size": 4000, "adaptive_cutoffs": (1000, 2000), "num_layers": 1}
    model = TransformerLM(ModelConfig(**(PAPER | sizes)))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    for b, width in enumerate((128, 32, 8)):
        table, projection = (params["embedding"][f"{name}_{b}"] for name in ("table", "projection"))
        np.testing.assert_allclose(table.std(), width**-0.5, rtol=0.02)
        assert float(jnp.abs(table).max()) > 3 * width**-0.5  # normal, not cut off
        np.testing.assert_allclose(jnp.abs(projection).max(), (6 / (width + 128)) ** 0.5, rtol=0.02)
    np.testing.assert_allclose(jnp.abs(params["softmax"]["classes"]).max(), (6 / (2 + 128)) ** 0.5, rtol=0.02)
    attention = params["layer_0"]["attention"]
    for name, gain in {"query": 2**-0.5, "key": 2**-0.5, "value": 2**-0.5, "out": 1.0}.items():
        np.testing.assert_allclose(jnp.abs(attention[name]).max(), gain * (6 / 256) ** 0.5, rtol=0.02)


def test_dropout_of_the_adaptive_softmax_acts_on_its_input_and_after_each_projection_in_training_only():
    model, params = make(adaptive_dropout=0.5, num_layers=1)
    tokens = jnp.arange(0, 48).reshape(2, 24)
    plain = apply(make(num_layers=1)[0], params, tokens)
    assert_close(apply(model, params, tokens), plain, "logits")
    trained = apply(model, params, tokens, train=True, rngs={"dropout": jax.random.key(0)})
    for part in (slice(0, 30), slice(30, 60), slice(60, 101)):
        assert float(jnp.abs(trained - plain)[..., part].max()) > 1e-2
    # every channel of cluster 1 has the same input, and its tokens 30 and 31 read one channel each: only a dropout after the
    # projection can make them differ
    params["embedding"] |= {"projection_1": jnp.ones((8, 32)), "table_1": jnp.eye(30, 8)}
    differ = []
    for options in ({}, {"train": True, "rngs": {"dropout": jax.random.key(0)}}):
        scores = apply(model, params, tokens, **options)
        differ.append(float(jnp.abs(scores[..., 30] - scores[..., 31]).max()))
    assert differ[0] < 1e-4 < 1e-1 < differ[1]


def test_the_loss_in_chunks_is_the_loss_in_the_model_too():
    """A limit of a MiB, and rows enough for it: the same nats and gradients as with all logits at once."""
    plain = {"num_layers": 1, "adaptive_cutoffs": ()}
    tokens = jax.random.randint(jax.random.key(3), (16, 257), 0, 101)

    def total(params, mib):
        model = TransformerLM(ModelConfig(**(PAPER | plain | {"logits_mib": mib})))
        return model.apply({"params": params}, tokens[:, :-1], tokens[:, 1:], method="nats").mean()

    params = make(**plain)[1]
    step = jax.jit(jax.value_and_grad(total), static_argnums=1)
    (one, gradient), (whole, expected) = step(params, 1), step(params, 256)
    loops = [step.lower(params, mib).as_text().count("stablehlo.while") for mib in (1, 256)]
    assert loops[0] == loops[1] + 2  # one forward, one backward
    assert_close(one, whole, "loss")
    jax.tree.map(lambda a, b: assert_close(a, b, "logits"), gradient, expected)


def test_clusters_are_sharded_and_give_the_same_loss_on_a_mesh():
    """8 devices, 2 of each kind: tokens of every cluster over `tensor`, widths over `fsdp`."""
    model, params = make(adaptive_cutoffs=(32, 64), vocab_size=128, num_layers=1)
    tokens = jax.random.randint(jax.random.key(3), (4, 9), 0, 128)

    def loss(params):
        return model.apply({"params": params}, tokens[:, :-1], tokens[:, 1:], method="nats").mean()

    expected, gradient = jax.jit(jax.value_and_grad(loss))(params)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        shardings = tree_shardings(model.config, params, mesh)
        specs = {name: shardings["embedding"][name].spec for name in ("table_1", "projection_1")}
        assert specs == {"table_1": PartitionSpec("tensor", "fsdp"), "projection_1": PartitionSpec(None, "fsdp")}
        placed = jax.device_put(params, shardings)
        got, sharded = jax.jit(jax.value_and_grad(loss))(placed)
    assert abs(float(got - expected)) < TOLERANCE["sharded loss"]
    assert_close(sharded["embedding"]["table_2"], gradient["embedding"]["table_2"], "logits")


def test_learned_slopes_are_never_given_to_a_kernel_by_auto():
    bias = LinearBias(alibi_slopes(4))
    assert implementation("auto", Alibi(4, slopes="learned"), bias) == "blockwise"
    assert implementation("pallas_tpu", Alibi(4, slopes="learned"), bias) == "pallas_tpu"  # which will say why not
    assert implementation("auto", Alibi(4), bias) == "auto"


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"data": 2, "tensor": 4}, r"adaptive_cutoffs, tokens 0 to 30: got 30, expected a multiple of 4"),
        ({"data": 1, "fsdp": 8}, r"width of the vectors of tokens 60 to 104: got 2, expected a multiple of 8"),
    ],
)
def test_a_mesh_that_does_not_divide_a_cluster_is_refused(mesh, message):
    model = ModelConfig(**(PAPER | {"vocab_size": 104}))
    config = Config(model=model, train=TrainConfig(batch_size=16), mesh=MeshConfig(**mesh))
    with pytest.raises(ConfigError, match=message):
        check_mesh(config, make_mesh(config.mesh))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"adaptive_cutoffs": (30, 101)},
            r"adaptive_cutoffs: got \(30, 101\) with a vocabulary of 101, expected increasing",
        ),
        ({"adaptive_cutoffs": (60, 30)}, r"adaptive_cutoffs: got \(60, 30\)"),
        ({"adaptive_cutoffs": (0, 30)}, r"adaptive_cutoffs: got 0, expected 1 to"),
        (
            {"adaptive_factor": 8},
            r"adaptive_factor: got 8 for 3 clusters of a model of width 32, expected .* at least 1 wide",
        ),
        (
            {"adaptive_cutoffs": (), "adaptive_dropout": 0.1},
            r"adaptive_dropout: got 0\.1 with model\.adaptive_cutoffs \(\)",
        ),
    ],
)
def test_clusters_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**(PAPER | changes))
