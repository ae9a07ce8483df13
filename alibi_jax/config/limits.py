"""The values that each field may have: its range if it is a number, and the choice of another field that it belongs to.

Both tables name fields as "section.field", those of a command as "command.field". A number without a range raises a KeyError
when its class is first used, so that none is forgotten.
"""

from typing import Any, NamedTuple

COUNT = 2**31 - 1  # steps, tokens and rows are counted in int32
MONTH = 30 * 86_400  # seconds
DEVICES = 2**20  # more than any pod has


class Range(NamedTuple):
    """From `low` to `high`, both included; NaN is in no range."""

    low: float
    high: float
    is_size: bool = False  # memory grows with it: an error says how much it would take

    def __str__(self) -> str:
        return " to ".join(str(end) if isinstance(end, int) else f"{end:g}" for end in self[:2])


RANGES = {
    "model.num_layers": Range(1, 10_000, is_size=True),
    "model.width": Range(1, 2**20, is_size=True),
    "model.num_heads": Range(1, 2**20),
    "model.num_kv_heads": Range(1, 2**20),
    "model.mlp_width": Range(1, 2**24, is_size=True),
    "model.vocab_size": Range(1, COUNT, is_size=True),
    "model.embedding_multiplier": Range(1e-6, 1e6),
    "model.logit_multiplier": Range(1e-6, 1e6),
    "model.clip_qkv": Range(1e-6, 1e6),
    "model.score_multiplier": Range(1e-6, 1e6),
    "model.norm_epsilon": Range(1e-20, 1.0),  # 0 would divide by the deviation of a constant vector
    "model.adaptive_cutoffs": Range(1, COUNT),
    "model.adaptive_factor": Range(1, 2**20),
    "model.adaptive_dropout": Range(0.0, 0.9999),
    "model.logits_mib": Range(1, 2**20),
    "model.embedding_dropout": Range(0.0, 0.9999),
    "model.residual_dropout": Range(0.0, 0.9999),
    "model.attention_dropout": Range(0.0, 0.9999),
    "model.activation_dropout": Range(0.0, 0.9999),
    "model.bias_max": Range(1e-6, 100.0),  # 2^-126 is the least normal float32
    "model.slope_divisor": Range(1e-6, 1e6),
    "model.slope_length": Range(1, COUNT),
    "model.rotary_base": Range(1.0, 1e12),
    "model.t5_buckets": Range(2, 2**16),
    "model.t5_max_distance": Range(1, COUNT),
    "model.learned_length": Range(1, COUNT, is_size=True),
    "data.bpe_vocab_size": Range(1, 2**22, is_size=True),
    "optimizer.peak_learning_rate": Range(1e-12, 1e6),
    "optimizer.initial_learning_rate": Range(0.0, 1e6),
    "optimizer.final_learning_rate": Range(0.0, 1e6),
    "optimizer.warmup_steps": Range(0, COUNT),
    "optimizer.momentum": Range(0.0, 0.999999),  # float32 rounds what is nearer to 1, and then 1 - beta is 0
    "optimizer.beta1": Range(0.0, 0.999999),
    "optimizer.beta2": Range(0.0, 0.999999),
    "optimizer.epsilon": Range(1e-30, 1.0),
    "optimizer.weight_decay": Range(0.0, 1e3),
    "optimizer.clip_norm": Range(1e-12, 1e9),  # the largest clips nothing that is finite and sound
    "train.train_length": Range(1, COUNT, is_size=True),
    "train.batch_size": Range(1, COUNT, is_size=True),
    "train.gradient_accumulation": Range(1, COUNT),
    "train.steps": Range(1, COUNT),
    "train.seed": Range(0, 2**32 - 1),
    "train.log_every": Range(1, COUNT),
    "train.validate_every": Range(0, COUNT),
    "train.validate_tokens": Range(1, COUNT),
    "train.validate_lengths": Range(1, COUNT, is_size=True),
    "train.checkpoint_every": Range(1, COUNT),
    "train.max_to_keep": Range(1, COUNT),
    "evaluate.lengths": Range(1, COUNT, is_size=True),
    "evaluate.max_tokens": Range(0, COUNT),
    "evaluate.batch_tokens": Range(1, 10**15, is_size=True),  # cut to the windows there are
    "evaluate.memory_limit_gib": Range(0.0, 1e7),
    "mesh.data": Range(-1, DEVICES),
    "mesh.fsdp": Range(-1, DEVICES),
    "mesh.tensor": Range(-1, DEVICES),
    "mesh.sequence": Range(-1, DEVICES),
    "hosts.count": Range(0, DEVICES),
    "hosts.index": Range(-1, DEVICES),
    "hosts.timeout_seconds": Range(1, MONTH),
    "hosts.heartbeat_seconds": Range(1, MONTH),
    "hosts.wait_seconds": Range(5, MONTH),  # a host that is at work says so every second
    "supervise.last_step": Range(1, COUNT),
    "supervise.patience": Range(0, COUNT),
    "supervise.stop_seconds": Range(0.0, MONTH),
    "supervise.stall_seconds": Range(0.0, MONTH),
    "import.train_length": Range(1, COUNT),
    "plan.slices": Range(1, 256),
    "plan.lengths": Range(1, 2**24, is_size=True),
    "plan.batches": Range(1, COUNT, is_size=True),
    "plan.tries": Range(1, 10_000),
    "plan.attention_share": Range(1e-6, 1.0),  # at 2^20 tokens the diagonal's blocks alone are 2^-10
}


class Belongs(NamedTuple):
    """A field acts only where another field of its section has one of these values; none listed: any but empty, 0 or False."""

    other: str
    values: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        """Returns whether the field acts, given the value of the other."""
        return value in self.values if self.values else bool(value)


ALIBI, T5, TFDS = Belongs("position", ("alibi",)), Belongs("position", ("t5",)), Belongs("source", ("tfds",))
FILES, ADAMW, CLUSTERS = Belongs("source", ("files",)), Belongs("name", ("adamw",)), Belongs("adaptive_cutoffs")
SOMEBODYS = Belongs("tokenizer", ("file",))

BELONGS = {
    "model.norm_biases": Belongs("norm", ("layer",)),
    "model.bias_max": ALIBI,
    "model.slopes": ALIBI,
    "model.slope_divisor": ALIBI,
    "model.slope_length": ALIBI,
    "model.slope_scaling": ALIBI,
    "model.slope_rounding": ALIBI,
    "model.rotary_base": Belongs("position", ("rotary",)),
    "model.t5_buckets": T5,
    "model.t5_max_distance": T5,
    "model.learned_length": Belongs("position", ("learned",)),
    "model.adaptive_factor": CLUSTERS,
    "model.adaptive_dropout": CLUSTERS,
    "model.tied_projections": CLUSTERS,
    "model.remat_saves": Belongs("remat"),
    "data.train_path": FILES,
    "data.valid_path": FILES,
    "data.test_path": FILES,
    "data.tfds_name": TFDS,
    "data.tfds_dir": TFDS,
    "data.tfds_manual_dir": TFDS,
    "data.tfds_text": TFDS,
    "data.tfds_splits": TFDS,
    "data.bpe_vocab_size": Belongs("tokenizer", ("bpe",)),
    "data.tokenizer_path": SOMEBODYS,
    "data.tokenizer_end": SOMEBODYS,
    "optimizer.initial_learning_rate": Belongs("warmup_steps"),
    "optimizer.final_learning_rate": Belongs("schedule", ("cosine", "linear")),
    "optimizer.momentum": Belongs("name", ("nag",)),
    "optimizer.beta1": ADAMW,
    "optimizer.beta2": ADAMW,
    "optimizer.epsilon": ADAMW,
    "plan.batches": Belongs("search"),
    "plan.tries": Belongs("search"),
}
