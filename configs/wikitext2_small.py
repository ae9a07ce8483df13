"""The WikiText-103 recipe in small, for WikiText-2 on two cores: a run of minutes.

Kept: words as tokens, adaptive input and softmax with tied embeddings and projections, pre-norm without a final norm, biases,
ReLU, scaled embeddings. Changed, because there is time for 0.4 epochs and not for 200: the sizes, no dropout, and AdamW in
place of NAG.
"""

from alibi_jax.config import Config, DataConfig, EvaluateConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    """Returns the recipe's config."""
    return Config(
        model=ModelConfig(
            position="alibi",
            num_layers=3,
            width=128,
            num_heads=4,
            mlp_width=512,
            final_norm=False,
            adaptive_cutoffs=(2_000, 10_000),
            adaptive_factor=4,
        ),
        data=DataConfig(source="tfds", tfds_name="wikitext/wikitext-2", tokenizer="words"),
        optimizer=OptimizerConfig(peak_learning_rate=8e-3, final_learning_rate=4e-4, warmup_steps=50, beta2=0.95),
        train=TrainConfig(
            train_length=64,
            batch_size=32,
            steps=400,
            validate_every=200,
            validate_tokens=8192,
            checkpoint_every=200,
        ),
        evaluate=EvaluateConfig(lengths=(64, 128, 256, 512, 1024, 2048), split="valid", max_tokens=16_384),
    )
