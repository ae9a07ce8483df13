"""The books recipe in small: bytes of whole books on two cores, a run of minutes.

Bytes in place of subwords, because after a million tokens a model of bytes leans on positions (letters make words by their
order) and one of subwords hardly does; experiments/LOG.md has both.
"""

from alibi_jax.config import Config, DataConfig, EvaluateConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    """Returns the recipe's config."""
    return Config(
        model=ModelConfig(position="alibi", num_layers=3, width=128, num_heads=4, mlp_width=512),
        data=DataConfig(
            source="files",
            train_path="books/train",
            valid_path="books/valid",
            test_path="books/test",
            tokenizer="bytes",
        ),
        optimizer=OptimizerConfig(peak_learning_rate=4e-3, final_learning_rate=2e-4, warmup_steps=50, beta2=0.95),
        train=TrainConfig(
            train_length=128,
            batch_size=16,
            steps=600,
            validate_every=300,
            validate_tokens=8192,
            checkpoint_every=300,
        ),
        evaluate=EvaluateConfig(lengths=(128, 256, 512, 1024, 2048, 4096), split="valid", max_tokens=16_384),
    )
