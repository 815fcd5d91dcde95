"""What units are worth by the curvature of the loss, through the inverse of a Hessian that is never made.

Frantar, Kurtic and Alistarh 2021, "M-FAC": the Hessian is taken to be the mean of m gradients' outer products, the
empirical Fisher matrix, and its inverse is applied by a recursion of rank-one updates.
"""

from __future__ import annotations

from itertools import islice

import torch

from ferryman.converter.prune.criteria import Context, gate_gradients
from ferryman.runtime.contracts.errors import CallerError

_GRADIENTS = 256
_DAMPENING = 1e-5


class InverseHessian:
    """Of damp * I + the mean of outer products of m gradients; O(d m^2) to make, O(d m) to apply."""

    def __init__(self, gradients: torch.Tensor, damp: float) -> None:
        """Do the recursion.

        Args:
            gradients: float[m, d].
            damp: above 0.

        Raises:
            CallerError: there are none, or damp is not above 0.
        """
        if gradients.dim() != 2 or not len(gradients) or damp <= 0:  # noqa: PLR2004  # m, d
            raise CallerError(
                f"M-FAC takes gradients [m, d] and a damp above 0, found {list(gradients.shape)} and {damp}"
            )
        count = len(gradients)
        self._damp = damp
        self._vectors = torch.zeros_like(gradients)
        """The inverse before the i-th update, times the i-th gradient."""
        self._denominators = gradients.new_zeros(count)
        for i, gradient in enumerate(gradients):
            self._vectors[i] = self._apply(gradient, i)
            self._denominators[i] = count + gradient @ self._vectors[i]

    def _apply(self, vector: torch.Tensor, count: int) -> torch.Tensor:
        held = self._vectors[:count]
        return vector / self._damp - ((held @ vector) / self._denominators[:count]) @ held

    def times(self, vector: torch.Tensor) -> torch.Tensor:
        """The inverse times float[d]."""
        return self._apply(vector, len(self._vectors))

    def diagonal(self) -> torch.Tensor:
        """float[d]: of the inverse."""
        return 1 / self._damp - (self._vectors.square() / self._denominators[:, None]).sum(0)

    def element(self, row: int, column: int) -> float:
        """One element of the inverse, at O(m)."""
        product = (self._vectors[:, row] * self._vectors[:, column] / self._denominators).sum()
        return (1 / self._damp if row == column else 0.0) - float(product)


class Mfac:
    """What the loss grows by when a unit goes and the others' gates make the best of it (optimal brain surgeon).

    The Hessian is that of the gates of all units, one on what is read of each: taking out the unit puts its gate from 1
    to 0, which costs 1 / (2 [H^-1]_uu).
    """

    name, needs_data, comparable = "mfac", True, True

    def score(self, context: Context) -> list[torch.Tensor]:
        """As the protocol says; looks at some of the loader's samples one by one."""
        single = (
            (inputs[i : i + 1], targets[i : i + 1]) for inputs, targets in context.batches() for i in range(len(inputs))
        )
        alone = Context(
            context.model,
            context.groups,
            context.example,
            list(islice(single, _GRADIENTS)),
            context.loss,
            batches_max=_GRADIENTS,
        )
        gradients = torch.stack([torch.cat(gates) for gates in gate_gradients(alone)]).double()
        damp = max(float(gradients.square().mean()) * len(gradients[0]) * _DAMPENING, 1e-20)
        diagonal = InverseHessian(gradients, damp).diagonal().clamp(min=1e-30)
        whole = (1 / (2 * diagonal)).float()
        return list(torch.split(whole, [group.count for group in context.groups]))
