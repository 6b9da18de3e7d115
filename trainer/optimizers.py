"""Optimizers by name, each with settings that suit small models, and learning-rate schedules."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import muon_jax
from trainer.errors import UsageError

OptimizerName = Literal[
    "muon",
    "muon-default",
    "muon-clip",
    "optax-muon",
    "adamw",
    "adam",
    "lion",
    "rmsprop",
    "adagrad",
    "sgd",
    "sgd-momentum",
    "sgd-nesterov",
]
ScheduleName = Literal["cosine", "linear", "constant", "wsd"]

WSD_DECAY = 0.2  # of the steps; as good as a cosine over all steps (Hägele et al. 2024)
MOMENTUM = 0.9  # of SGD
MUON_MOMENTUM = 0.95  # of the sources of Muon
MUON_RMS = 0.2  # of an update, as with muon_jax.muon; about AdamW's (Liu et al. 2025)
BETA2 = (
    0.95  # of Adam and AdamW; the usual 0.999 would average over more steps than these runs take
)


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning-rate schedule."""

    optimizer: OptimizerName = "muon"
    """muon has the settings below; muon-default is muon_jax.muon with its own defaults; optax-muon
    is optax.contrib.muon with the dimension numbers that attention needs; muon-clip is for models
    with attention; sgd has no momentum; sgd-momentum has heavy-ball momentum."""
    learning_rate: float | None = None
    """Peak learning rate. None: 1e-2 for muon, muon-clip and optax-muon, 8e-3 for muon-default,
    5e-3 for adamw, adam and rmsprop, 3e-3 for lion, 1 for sgd, 0.1 for adagrad, sgd-momentum and
    sgd-nesterov."""
    weight_decay: float | None = None
    """Weight decay of matrices, multiplied by the learning rate. None: 0.1 for muon, muon-clip,
    optax-muon and adamw, 0.25 for muon-default, 0.5 for lion. The other optimizers add the decay to
    the gradient; for them, None is 1e-4 for the three SGDs and 0 for the rest."""
    warmup_steps: int = 50
    """Steps in which the learning rate rises to its peak."""
    schedule: ScheduleName = "cosine"
    """After the warmup: cosine or linear decay to 0, constant, or wsd (constant, then linear decay
    to 0 in the last fifth)."""
    gradient_clip: float | None = None
    """Largest global norm of a gradient."""
    orthogonalizer: str = "fast"
    """How muon orthogonalises: a coefficient name of newton_schulz, jordan (the first published
    form: keller's coefficients after division by the Frobenius norm), bfloat16 (fast with bfloat16
    operands), or svd (exact). keller:7 takes seven steps. schatten:P is steepest descent under a
    Schatten norm, from P = 2 (normalised SGD) to P = inf (svd)."""
    scale: str = "match_rms"
    """Size of muon's updates: match_rms, keller, spectral, update_norm, none, or hidden_size:N for
    a model of width N."""
    fallback_learning_rate: float | None = None
    """Peak learning rate of the parameters that muon leaves to AdamW (embedding, head, norms); also
    for optax-muon and adamw. Default: that of the matrices."""
    fallback_nesterov: bool = True
    """Whether muon's AdamW uses Nesterov momentum."""
    attention_rate: float = 1.0
    """Factor on the learning rate of attention's matrices, for muon and muon-clip."""
    clip_threshold: float = 100.0
    """Attention logit above which muon-clip scales a head's weights down."""

    def __post_init__(self) -> None:
        for option in (
            "learning_rate",
            "fallback_learning_rate",
            "gradient_clip",
            "clip_threshold",
        ):
            value = getattr(self, option)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"--{option.replace('_', '-')} {value}: give a number above 0")
        if self.weight_decay is not None and not 0 <= self.weight_decay < float("inf"):
            raise UsageError(f"--weight-decay {self.weight_decay}: give a number of at least 0")
        if self.warmup_steps < 0:
            raise UsageError(f"--warmup-steps {self.warmup_steps}: give at least 0")
        try:
            named_orthogonalizer(self.orthogonalizer)
        except ValueError as error:
            _, remedy = str(error).split(": ", 1)
            raise UsageError(
                f"--orthogonalizer {self.orthogonalizer}: "
                f"{', '.join(_NEWTON_SCHULZ)}, svd, schatten:P, or {remedy}"
            ) from error
        if self.scale not in _SCALES and not _width_of(self.scale):
            raise UsageError(f"--scale {self.scale}: choose {', '.join(_SCALES)}, or hidden_size:N")

    @property
    def peak(self) -> float:
        return self.learning_rate or _OPTIMIZERS[self.optimizer].learning_rate

    @property
    def decay(self) -> float:
        default = _OPTIMIZERS[self.optimizer].weight_decay
        return default if self.weight_decay is None else self.weight_decay


def learning_rate_schedule(
    config: OptimizerConfig, steps: int, *, peak: float | None = None
) -> optax.Schedule:
    """Returns the learning rate of update 0, 1, …, steps − 1; none of them is 0."""
    top = config.peak if peak is None else peak
    warmup = config.warmup_steps

    def schedule(count: Any) -> jax.Array:
        rise = jnp.minimum(1, (count + 1) / (warmup + 1))
        progress = jnp.clip((count - warmup) / max(1, steps - warmup), 0, 1)
        return top * rise * _DECAYS[config.schedule](progress)

    return schedule


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns the transformation that `config` describes for a run of `steps` updates."""
    schedule = learning_rate_schedule(config, steps)
    fallback = learning_rate_schedule(config, steps, peak=config.fallback_learning_rate)
    transform = _OPTIMIZERS[config.optimizer].make(config, schedule, fallback)
    if config.gradient_clip is None:
        return transform
    return optax.chain(optax.clip_by_global_norm(config.gradient_clip), transform)


def _muon(
    config: OptimizerConfig, schedule: optax.Schedule, fallback: optax.Schedule
) -> optax.GradientTransformation:
    muon = muon_jax.muon(
        schedule,
        weight_decay=config.decay,
        momentum=MUON_MOMENTUM,
        orthogonalizer=named_orthogonalizer(config.orthogonalizer),
        scale=_scale(config.scale),
        fallback=muon_jax.adamw(
            fallback,
            b2=BETA2,
            weight_decay=config.decay,
            weight_decay_mask=_matrices,
            nesterov=config.fallback_nesterov,
        ),
    )
    if config.attention_rate == 1:
        return muon
    return optax.chain(muon, muon_jax.scale_by_path({"*/attention/*": config.attention_rate}))


def _muon_default(
    config: OptimizerConfig, schedule: optax.Schedule, fallback: optax.Schedule
) -> optax.GradientTransformation:
    del fallback
    return muon_jax.muon(schedule, weight_decay=config.decay)


def _muon_clip(
    config: OptimizerConfig, schedule: optax.Schedule, fallback: optax.Schedule
) -> optax.GradientTransformation:
    """Returns `muon_jax.muon_clip`, with `attention_rate` applied before the clip."""
    return optax.chain(_muon(config, schedule, fallback), muon_jax.clip_qk(config.clip_threshold))


def _optax_muon(
    config: OptimizerConfig, schedule: optax.Schedule, fallback: optax.Schedule
) -> optax.GradientTransformation:
    return optax.contrib.muon(
        schedule,
        weight_decay=config.decay,
        consistent_rms=MUON_RMS,
        adam_b2=BETA2,
        adam_weight_decay=0.0,  # it takes no mask, and would decay the norms' scales too
        adam_learning_rate=fallback,
        muon_weight_dimension_numbers=_optax_dimension_numbers,
    )


def _adamw(
    config: OptimizerConfig, schedule: optax.Schedule, fallback: optax.Schedule
) -> optax.GradientTransformation:
    def at(rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.adamw(rate, b2=BETA2, weight_decay=config.decay, mask=_matrices)

    if config.fallback_learning_rate is None:
        return at(schedule)
    return optax.multi_transform(
        {"muon": at(schedule), "adamw": at(fallback)}, muon_jax.label_params
    )


def _lion(
    config: OptimizerConfig, schedule: optax.Schedule, fallback: optax.Schedule
) -> optax.GradientTransformation:
    del fallback
    return optax.lion(schedule, weight_decay=config.decay, mask=_matrices)


_Make = Callable[[OptimizerConfig, optax.Schedule, optax.Schedule], optax.GradientTransformation]


def _behind_decay(make: Callable[[optax.Schedule], optax.GradientTransformation]) -> _Make:
    """Adds weight decay to the gradient, as was usual before AdamW decoupled the two."""

    def behind_decay(
        config: OptimizerConfig, schedule: optax.Schedule, fallback: optax.Schedule
    ) -> optax.GradientTransformation:
        del fallback
        decayed = optax.add_decayed_weights(config.decay, mask=_matrices)
        return optax.chain(decayed, make(schedule))

    return behind_decay


@dataclass(frozen=True)
class _Recipe:
    make: _Make
    learning_rate: float
    weight_decay: float


_OPTIMIZERS: dict[str, _Recipe] = {
    "muon": _Recipe(_muon, 1e-2, 0.1),
    "muon-default": _Recipe(_muon_default, 8e-3, 0.25),
    "muon-clip": _Recipe(_muon_clip, 1e-2, 0.1),
    "optax-muon": _Recipe(_optax_muon, 1e-2, 0.1),
    "adamw": _Recipe(_adamw, 5e-3, 0.1),
    "adam": _Recipe(_behind_decay(partial(optax.adam, b2=BETA2)), 5e-3, 0.0),
    "lion": _Recipe(_lion, 3e-3, 0.5),
    "rmsprop": _Recipe(_behind_decay(optax.rmsprop), 5e-3, 0.0),
    "adagrad": _Recipe(_behind_decay(optax.adagrad), 0.1, 0.0),
    "sgd": _Recipe(_behind_decay(optax.sgd), 1.0, 1e-4),
    "sgd-momentum": _Recipe(_behind_decay(partial(optax.sgd, momentum=MOMENTUM)), 0.1, 1e-4),
    "sgd-nesterov": _Recipe(
        _behind_decay(partial(optax.sgd, momentum=MOMENTUM, nesterov=True)), 0.1, 1e-4
    ),
}

_DECAYS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "cosine": lambda progress: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": jnp.ones_like,
    "wsd": lambda progress: jnp.minimum(1, (1 - progress) / WSD_DECAY),
}


_NEWTON_SCHULZ: dict[str, Any] = {
    "jordan": {"coefficients": "keller", "normalization": "frobenius"},
    "bfloat16": {"dtype": "bfloat16"},
}
_SCALES = ("match_rms", "keller", "spectral", "update_norm", "none")


def named_orthogonalizer(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns what `--orthogonalizer` names."""
    if norm := re.fullmatch(r"schatten:([\d.]+|inf)", name):
        return muon_jax.steepest_descent(float(norm[1]))
    if name == "svd":
        return muon_jax.polar_by_svd()
    counted = re.fullmatch(r"(\w+):(\d+)", name)
    kind, steps = (counted[1], int(counted[2])) if counted else (name, None)
    options = _NEWTON_SCHULZ.get(kind, {"coefficients": kind})
    return muon_jax.newton_schulz(**options, steps=steps)


def _scale(name: str) -> Any:
    width = _width_of(name)
    return muon_jax.hidden_size(width) if width else name


def _width_of(scale: str) -> int:
    """Returns N of hidden_size:N, or 0 for any other name."""
    kind, _, width = scale.partition(":")
    return int(width) if kind == "hidden_size" and width.isdecimal() else 0


def _matrices(params: Any) -> Any:
    """Marks the parameters that weight decay acts on: all except the norms' scales."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _optax_dimension_numbers(params: Any) -> Any:
    """Returns the input and output axes of each matrix in the blocks; None means AdamW."""

    def numbers(path: Any, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if leaf.ndim == 4:  # a convolution's, (height, width, inputs, outputs)
            return optax.contrib.MuonDimensionNumbers((0, 1, 2), (3,))
        if "blocks" not in names or "router" in names or leaf.ndim == 1:
            return None
        if "experts" in names:
            return optax.contrib.MuonDimensionNumbers(1, 2)
        inputs = tuple(range(leaf.ndim - 1)) if "out" in names else (0,)
        outputs = tuple(range(len(inputs), leaf.ndim))
        return optax.contrib.MuonDimensionNumbers(inputs, outputs)

    return jax.tree_util.tree_map_with_path(numbers, params)
