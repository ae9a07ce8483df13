"""A small model on the text of the Python standard library, as bytes: minutes on two cores.

Bytes, because a model of bytes leans on positions (letters make words by their order) after the million tokens there is
time for here. The sizes are the largest for which five methods are trained and evaluated within ten minutes.
"""

from alibi_jax.config import Config, DataConfig, EvaluateConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    """Returns the recipe's config."""
    return Config(
        model=ModelConfig(position="alibi", num_layers=3, width=128, num_heads=4, mlp_width=512),
        data=DataConfig(source="stdlib", tokenizer="bytes"),
        optimizer=OptimizerConfig(peak_learning_rate=4e-3, final_learning_rate=2e-4, warmup_steps=50, beta2=0.95),
        train=TrainConfig(
            train_length=128, batch_size=16, steps=500, validate_every=250, validate_tokens=8192, checkpoint_every=250
        ),
        evaluate=EvaluateConfig(split="test", max_tokens=16_384),
    )
