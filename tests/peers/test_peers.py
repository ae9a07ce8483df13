"""What others wrote as oracles: PyTorch's attention and AdamW; BLOOM, MPT, Llama, T5 and M2M100 of transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from alibi_jax.attention import IMPLEMENTATIONS, attend
from alibi_jax.config import Config, OptimizerConfig, TrainConfig
from alibi_jax.model import TransformerLM
from alibi_jax.optimizer import make_optimizer
from alibi_jax.positions import BucketBias, LinearBias, alibi_slopes
from alibi_jax.positions.rotary import rotate_pairs
from alibi_jax.positions.sinusoidal import sinusoids
from alibi_jax.train import State, train_step
from benchmarks.bloom import make_bloom, model_config, params_of_bloom, torch_adamw
from conftest import assert_close

pytestmark = pytest.mark.peers
HEADS = [1, 2, 6, 8, 12, 16, 40, 112]  # 112 are those of BLOOM 176B
BUCKETS = functools.partial(T5Attention._relative_position_bucket, bidirectional=False)
TINY = (32, 2, 4, 61)  # width, layers, heads, vocabulary
OPTIMIZER = OptimizerConfig(peak_learning_rate=1e-2, schedule="constant", warmup_steps=0, clip_norm=0.5)


def tokens_of(batch, length):
    return np.random.default_rng(length).integers(TINY[-1], size=(batch, length))


def make_mask(name, heads, q_positions, k_positions):
    """(our bias, torch's additive mask in float64 [H, T, S]); nothing of ours makes the mask but slopes and table."""
    distances = torch.tensor(q_positions[:, None] - k_positions[None, :])
    if name == "alibi":
        slopes = torch.tensor([2.0 ** (-8 * k / heads) for k in range(1, heads + 1)], dtype=torch.float64)
        bias, mask = LinearBias(jnp.asarray(slopes, jnp.float32)), -slopes[:, None, None] * distances
    else:
        table = np.random.default_rng(5).normal(size=(32, heads)).astype(np.float32)
        bias, mask = BucketBias(jnp.asarray(table)), torch.tensor(table).double()[BUCKETS(-distances)].permute(2, 0, 1)
    return bias, mask.masked_fill(distances < 0, -torch.inf)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("alibi", name) for name, each in IMPLEMENTATIONS.items() if "float32" in each.dtypes]
    + [("t5", "reference"), ("t5", "blockwise")],
)
@pytest.mark.parametrize(("queries", "keys"), [(150, 150), (70, 190)])
def test_attention_and_gradients_equal_torch_sdpa(queries, keys, name, implementation):
    offset, random = keys - queries, np.random.default_rng(0)
    arrays = [random.uniform(-1, 1, (1, length, 4, 16)).astype(np.float32) for length in (queries, keys, keys)]
    bias, mask = make_mask(name, 4, offset + np.arange(queries), np.arange(keys))

    def ours(q, k, v):
        out = attend(q, k, v, bias=bias, q_offset=offset, implementation=implementation, interpret=True)
        return jnp.square(out).sum(), out

    gradients, out = jax.jit(jax.grad(ours, (0, 1, 2), has_aux=True))(*arrays)
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in arrays]
    theirs = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in leaves), attn_mask=mask)
    theirs.square().sum().backward()
    assert_close(out, theirs.transpose(1, 2).detach(), "attention")
    for ours_gradient, leaf in zip(gradients, leaves, strict=True):
        assert_close(ours_gradient, leaf.grad, "attention gradient")


@pytest.mark.parametrize("heads", HEADS)
def test_slopes_equal_blooms(heads):
    theirs = build_alibi_tensor(torch.ones(1, 2, dtype=torch.int64), heads, torch.float32)[:, 0, 1]
    assert_close(theirs.numpy() / alibi_slopes(heads), np.ones(heads), "peer")


@pytest.mark.parametrize("bias_max", [8.0, 16.0])
@pytest.mark.parametrize("heads", HEADS)
def test_slopes_equal_mpts(heads, bias_max):
    theirs = -build_mpt_alibi_tensor(heads, 2, bias_max)[:, 0, 0]
    assert_close(theirs.numpy() / alibi_slopes(heads, bias_max), np.ones(heads), "peer")


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (64, 1000)])
def test_buckets_equal_t5s(buckets, max_distance):
    bias, distances = BucketBias(jnp.zeros((buckets, 1)), max_distance), np.arange(5001)
    theirs = BUCKETS(torch.tensor(-distances), num_buckets=buckets, max_distance=max_distance)
    np.testing.assert_array_equal(bias.buckets(jnp.asarray(distances)), theirs)


def test_rotary_equals_llamas():
    q, k = (np.random.default_rng(i).normal(size=(2, 100, 4, 16)).astype(np.float32) for i in range(2))
    rotary = LlamaRotaryEmbedding(LlamaConfig(hidden_size=64, num_attention_heads=4))
    cosines, sines = rotary(torch.tensor(q), torch.arange(100)[None])
    theirs = apply_rotary_pos_emb(torch.tensor(q), torch.tensor(k), cosines, sines, unsqueeze_dim=2)
    for x, turned in zip((q, k), theirs, strict=True):
        assert_close(rotate_pairs(jnp.asarray(x), jnp.arange(100), 10_000.0), turned, "peer")


def test_sinusoids_equal_fairseqs():
    """M2M100's rows are fairseq's; its modules start reading them at row 2, after the padding, ours at row 0."""
    assert_close(sinusoids(jnp.arange(100), 64), M2M100SinusoidalPositionalEmbedding.get_embedding(100, 64), "peer")


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])  # what a model can use on this machine
@pytest.mark.parametrize("length", [64, 300])
def test_log_probabilities_equal_blooms(length, implementation):
    """The whole model, with one model's weights for both; BLOOM has no training length, 64 and 300 are one model to it."""
    bloom, tokens = make_bloom(*TINY), tokens_of(2, length)
    with torch.no_grad():
        for weight in bloom.parameters():
            weight.add_(0.1 * torch.randn_like(weight))  # BLOOM's own are too small for attention to matter
        theirs = bloom(torch.tensor(tokens)).logits.log_softmax(-1)
    model = TransformerLM(model_config(*TINY, attention=implementation))
    logits = jax.jit(model.apply)({"params": params_of_bloom(bloom)}, jnp.asarray(tokens))
    assert_close(jax.nn.log_softmax(logits), theirs, "peer")


def test_three_updates_equal_torch_adamw():
    """The optimizer alone, on a quadratic (x - target)^2 whose gradients are clipped, parameter for parameter."""
    linear, target = torch.nn.Linear(7, 5), np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
    params = {"up": jnp.asarray(linear.weight.detach().numpy()), "up_bias": jnp.asarray(linear.bias.detach().numpy())}
    ours, theirs = make_optimizer(OPTIMIZER, 3), torch_adamw(linear, OPTIMIZER)
    state = ours.init(params)
    for _ in range(3):
        gradients = {"up": 2 * (params["up"] - target), "up_bias": 2 * params["up_bias"]}
        updates, state = ours.update(gradients, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        theirs.zero_grad()
        ((linear.weight - torch.tensor(target)).square().sum() + linear.bias.square().sum()).backward()
        torch.nn.utils.clip_grad_norm_(linear.parameters(), OPTIMIZER.clip_norm)
        theirs.step()
    assert_close(params["up"], linear.weight.detach(), "peer")
    assert_close(params["up_bias"], linear.bias.detach(), "peer")


def test_losses_of_training_equal_blooms():
    """train_step beside BLOOM trained by torch: the losses before each of five updates."""
    bloom, rows = make_bloom(*TINY), tokens_of(4, 49)
    config = Config(model=model_config(*TINY), optimizer=OPTIMIZER, train=TrainConfig(train_length=48, batch_size=4))
    optimizer, theirs = make_optimizer(OPTIMIZER, 5), torch_adamw(bloom, OPTIMIZER)
    params = params_of_bloom(bloom)
    state = State(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    step = jax.jit(functools.partial(train_step, config, TransformerLM(config.model), optimizer))
    inputs, targets = torch.tensor(rows[:, :-1]), torch.tensor(rows[:, 1:])
    for _ in range(5):
        state, metrics = step(state, jnp.asarray(rows[:, :-1]), jnp.asarray(rows[:, 1:]))
        theirs.zero_grad()
        loss = torch.nn.functional.cross_entropy(bloom(inputs).logits.flatten(0, 1), targets.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(bloom.parameters(), OPTIMIZER.clip_norm)
        theirs.step()
        assert_close(metrics["loss"], loss.detach(), "loss")
        assert_close(metrics["grad_norm"], norm, "loss")
