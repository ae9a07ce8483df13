"""A small model on the Python standard library's own text: minutes on two cores."""

from alibi_jax.config import Config, DataConfig, EvaluateConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(position="alibi", num_layers=3, width=96, num_heads=8, mlp_width=384),
        data=DataConfig(source="stdlib", tokenizer="bpe", bpe_vocab_size=1024),
        optimizer=OptimizerConfig(peak_learning_rate=4e-3, final_learning_rate=2e-4, warmup_steps=50, beta2=0.95),
        train=TrainConfig(train_length=128, batch_size=32, steps=400, validate_every=200, checkpoint_every=200),
        evaluate=EvaluateConfig(split="test", max_tokens=32_768),
    )
