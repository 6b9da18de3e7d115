"""Arguments of other Muons, and what to write instead in `muon`."""

from collections.abc import Mapping
from types import MappingProxyType

OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        # optax.contrib.muon 0.2.8
        "ns_coeffs": "Give orthogonalizer=muon_jax.newton_schulz(coefficients)",
        "ns_steps": "Give orthogonalizer=muon_jax.newton_schulz('keller', steps=...)",
        "preconditioning": "Give orthogonalizer=muon_jax.newton_schulz(normalization='frobenius')",
        "beta": "Give momentum=...",
        "eps": "Leave it out: matrices of every size are orthogonalised, and zero stays zero",
        "adaptive": "Leave it out: scale= sets the size by shape",
        "mu_dtype": "Give momentum_dtype=...",
        "adam_b1": "Give fallback=muon_jax.adamw(learning_rate, b1=...)",
        "adam_b2": "Give fallback=muon_jax.adamw(learning_rate, b2=...)",
        "adam_eps_root": "Give fallback=optax.adamw(learning_rate, eps_root=...)",
        "adam_weight_decay": "Give weight_decay_mask=..., True for parameters of AdamW that decay",
        "adam_learning_rate": "Give fallback_learning_rate=...",
        "muon_weight_dimension_numbers": "Give axes=..., a tree of muon_jax.MatrixAxes",
        "consistent_rms": "Give scale='keller' for None, and scale='match_rms' for 0.2",
        # torch.optim.Muon 2.13 and KellerJordan/Muon
        "lr": "Give learning_rate=...",
        "adjust_lr_fn": "Give scale='keller' for 'original', 'match_rms' for 'match_rms_adamw'",
    }
)
"""Remedies by the name of the argument in another library."""
