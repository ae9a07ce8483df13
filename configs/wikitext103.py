"""The paper's WikiText-103 model (Press et al. 2022; Baevski & Auli 2019): 246,933,504 parameters, 73,728 tokens an update.

For another training length keep the tokens of an update: `--train.train-length 3072 --train.batch-size 24` (512: 144,
1,024: 72, 1,536: 48, 64: 1,152; at 2,048 each of 8 devices holds 4, so 32). Only the position method and the length change
between the paper's runs.
Two choices are ours: bfloat16 in place of fp16 with loss scaling, and the MLP's initial values, Xavier, which the paper does
not give. The vocabulary is fairseq's: 267,744 rows with specials and padding, a few of which no token uses.
"""

from alibi_jax.config import Config, DataConfig, EvaluateConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    """Returns the recipe's config."""
    return Config(
        model=ModelConfig(
            position="alibi",
            num_layers=16,
            width=1024,
            num_heads=8,
            mlp_width=4096,
            vocab_size=267_744,
            final_norm=False,
            adaptive_cutoffs=(20_000, 60_000),
            adaptive_factor=4,
            adaptive_dropout=0.2,
            embedding_dropout=0.3,
            residual_dropout=0.3,
            attention_dropout=0.1,
            activation_dropout=0.1,
            compute_dtype="bfloat16",
            scan_layers=True,
        ),
        data=DataConfig(source="tfds", tfds_name="wikitext/wikitext-103", tokenizer="words"),
        optimizer=OptimizerConfig(
            name="nag",
            momentum=0.99,
            weight_decay=0.0,
            clip_norm=0.1,
            initial_learning_rate=1e-7,
            peak_learning_rate=1.0,
            final_learning_rate=1e-4,
            warmup_steps=16_000,
        ),
        train=TrainConfig(
            train_length=512,
            batch_size=144,
            steps=286_000,
            log_every=100,
            validate_every=5_000,
            validate_tokens=217_646,
            checkpoint_every=2_500,
        ),
        evaluate=EvaluateConfig(lengths=(512, 1024, 1536, 2048, 3072), strides=("L",), split="valid"),
    )
