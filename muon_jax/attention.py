"""Measures the largest attention logit of every head, for `muon_jax.clip_qk`."""

from muon_jax.clip._flax import collect_max_logits as collect_max_logits
from muon_jax.clip._flax import reporting as reporting
from muon_jax.clip._max_logits import max_attention_logits as max_attention_logits

__all__ = ["collect_max_logits", "max_attention_logits", "reporting"]


def __dir__() -> list[str]:
    return __all__
