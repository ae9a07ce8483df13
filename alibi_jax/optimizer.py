"""The optimizer and its schedule, all Optax."""

from typing import Any

import jax
import optax

from alibi_jax.config import OptimizerConfig

UNDECAYED = ("bias", "scale")  # ends of names


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the rate by step: linear warm-up to the peak, then cosine or linear to the final rate at `steps`, or constant."""
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
    warmup = optax.linear_schedule(config.initial_learning_rate, peak, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def decayed(params: Any) -> Any:
    """Returns True for the matrices that weight decay acts on; False for biases, norm scales and all of a position method."""

    def is_decayed(path: tuple, _: Any) -> bool:
        names = [key.key for key in path]
        return "position" not in names and not names[-1].endswith(UNDECAYED)

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns AdamW (Loshchilov & Hutter 2019) or Nesterov's accelerated gradient, after a clip of the global gradient norm."""
    clip = optax.clip_by_global_norm(config.clip_norm)
    rate = learning_rate(config, steps)
    if config.name == "nag":
        return optax.chain(clip, nag(rate, config.momentum, config.weight_decay))
    adamw = optax.adamw(
        rate,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    return optax.chain(clip, adamw)


def nag(rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Returns fairseq's NAG: p <- (1 - r w) p + m^2 c v - (1 + m) r g, then v <- m c v - r g, with c = r / previous r.

    fairseq keeps v in units of parameters, and so rescales it by c whenever the rate r changes. Optax keeps the plain sum of
    gradients t = m t + g, which is -v / r and needs no rescaling: the rule is Optax's own Nesterov trace (test_optimizer.py
    compares it with the rule above). Only a rate of exactly 0 differs: fairseq cannot divide by it.
    """
    return optax.chain(
        optax.trace(momentum, nesterov=True),
        optax.add_decayed_weights(weight_decay, mask=decayed),
        optax.scale_by_learning_rate(rate),
    )
