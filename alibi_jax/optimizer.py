"""The optimizer and its schedule, all Optax."""

from typing import Any

import jax
import optax

from alibi_jax.config import OptimizerConfig

UNDECAYED = ("bias", "scale", "position_table", "bucket_table")


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then cosine or linear to the final rate at `steps`, or constant."""
    rest = max(1, steps - config.warmup_steps)
    peak, final = config.peak_learning_rate, config.final_learning_rate
    schedules = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=final / peak),
        "linear": lambda: optax.linear_schedule(peak, final, rest),
        "constant": lambda: optax.constant_schedule(peak),
    }
    after = schedules[config.schedule]()
    if config.warmup_steps == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, config.warmup_steps), after], [config.warmup_steps])


def decayed(params: Any) -> Any:
    """True for the matrices weight decay acts on; False for biases, norm scales and position tables."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not str(path[-1].key).endswith(UNDECAYED), params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) after a clip of the global gradient norm."""
    adamw = optax.adamw(
        learning_rate(config, steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
