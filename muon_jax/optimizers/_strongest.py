"""The settings of `muon` that trained best in our comparisons."""

from typing import Any

from optax import GradientTransformationExtraArgs

from muon_jax._types import ScalarOrSchedule
from muon_jax.optimizers._muon import muon
from muon_jax.transforms._door import public


@public("recipes.best", passes_to=muon)
def best(learning_rate: ScalarOrSchedule, **muon_arguments: Any) -> GradientTransformationExtraArgs:
    """Trains like `muon`, preconditioned by the second moment: the best loss for its cost.

    This is Muon²: the momentum is divided by the root mean square of earlier gradients, entry by
    entry, before orthogonalisation. A step costs little more than that of `muon`, and the state is
    as large as AdamW's. It gained most at our smaller batch; at the larger one its best learning
    rate was 1.4 times that of `muon`. `docs/explanation/family.md` has the measurements.

    Args:
      learning_rate: as for `muon`, or a schedule of it.
      muon_arguments: any other argument of `muon_jax.muon`.

    Returns:
      An optimizer for any tree of parameters, on any mesh.

    Raises:
      TypeError or ValueError: as `muon_jax.muon` does.

    Examples:
      >>> from muon_jax import recipes
      >>> tx = recipes.best(3e-4)

    References:
      `Muon² <https://arxiv.org/abs/2604.09967>`_, 2026
    """
    settings: dict[str, Any] = {"precondition": "second_moment", **muon_arguments}
    return muon(learning_rate, **settings)


@public("recipes.strongest", passes_to=muon)
def strongest(
    learning_rate: ScalarOrSchedule, **muon_arguments: Any
) -> GradientTransformationExtraArgs:
    """Trains like `muon`, preconditioned in the eigenbases of SOAP: the lowest loss.

    This is SOAP-Muon, with the defaults of `muon_jax.Soap`. At our larger batch its best learning
    rate was 1.4 times that of `muon`. `docs/explanation/family.md` has the measurements. It needs
    three more products and, every five steps, a QR decomposition of the short side of a matrix, and
    twice that for a square one. A matrix of r rows and c columns has 2·r·c + 2·min(r, c)² numbers
    of state, a square one 6r². On a mesh all of it is distributed over the devices.

    Args:
      learning_rate: as for `muon`, or a schedule of it.
      muon_arguments: any other argument of `muon_jax.muon`.

    Returns:
      An optimizer for any tree of parameters, under `jit` on any mesh.

    Raises:
      TypeError or ValueError: as `muon_jax.muon` does; and inside `shard_map`.

    Examples:
      >>> from muon_jax import recipes
      >>> tx = recipes.strongest(3e-4)

    References:
      Vyas et al., `SOAP <https://arxiv.org/abs/2409.11321>`_, 2024
    """
    settings: dict[str, Any] = {"precondition": "soap", **muon_arguments}
    return muon(learning_rate, **settings)
