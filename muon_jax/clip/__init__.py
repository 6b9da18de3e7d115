"""QK-Clip: keeps attention logits below a threshold by rescaling query and key weights."""

from muon_jax.clip._clip_qk import QKClipState as QKClipState
from muon_jax.clip._clip_qk import clip_qk as clip_qk
from muon_jax.clip._targets import QKPart as QKPart
from muon_jax.clip._targets import QKTarget as QKTarget

__all__ = ["QKClipState", "QKPart", "QKTarget", "clip_qk"]


def __dir__() -> list[str]:
    return __all__
