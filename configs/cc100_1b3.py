"""The paper's largest model: 25 layers of width 2,048, 16 heads, 1.3 billion parameters, 50,000 updates.

What the paper does not say is our choice, marked below with its reason; ReLU, biases, tied and scaled embeddings are those of
its WikiText-103 model. Its text, CC100 and RoBERTa's corpora (461 GB), is not one data set that can be downloaded: `cc100/` is
a folder of UTF-8 text (.gz too) of your own.
"""

from alibi_jax.config import Config, DataConfig, EvaluateConfig, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    """Returns the recipe's config."""
    return Config(
        model=ModelConfig(
            position="alibi",
            num_layers=25,
            width=2048,
            num_heads=16,
            mlp_width=8192,
            final_norm=True,  # ours: pre-norm models of this size are trained with one (Brown et al. 2020)
            residual_dropout=0.0,  # ours: less than one epoch needs no regularisation
            compute_dtype="bfloat16",  # the paper: fp16; bfloat16 needs no loss scaling
            scan_layers=True,
            remat=True,  # each layer keeps what fits the chip (remat_saves "auto")
        ),
        data=DataConfig(
            source="files",
            train_path="cc100",
            tokenizer="bpe",
            bpe_vocab_size=50_304,  # ours: the size of GPT-2's and RoBERTa's, a multiple of 128 for the mesh
        ),
        optimizer=OptimizerConfig(  # ours: GPT-3's for its 1.3 billion parameters (Brown et al. 2020, table 2.1, appendix B)
            peak_learning_rate=2e-4,
            final_learning_rate=2e-5,
            warmup_steps=360,  # of its 375 million tokens
            beta2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            train_length=1024,
            batch_size=1024,  # ours: a million tokens an update, GPT-3's batch for this size
            steps=50_000,
            log_every=20,
            validate_every=1_000,
            validate_tokens=262_144,
            checkpoint_every=500,
        ),
        evaluate=EvaluateConfig(lengths=(512, 1024, 2048), strides=("L",)),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
