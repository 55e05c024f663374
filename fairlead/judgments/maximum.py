"""Newton's method for concave likelihoods of a few parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fairlead.errors import InvalidInput

Floats = NDArray[np.float64]
Objective = Callable[[Floats], tuple[float, Floats, Floats]]
"""Returns value, gradient and negative Hessian [N, N] at the parameters [N]."""
_MAX_STEPS = 200
_SMALLEST_STEP = 1e-9
"""Newton's error after such a step is of the order of its square."""


def maximum(objective: Objective, start: Floats) -> Floats:
    """Return the parameters with the highest value.

    Steps are halved until the value rises by a share of what the gradient promises (Boyd and Vandenberghe
    2004, section 9.5). The negative Hessian must be positive definite.

    Raises:
        InvalidInput: if the value rises without end.
    """
    point = start
    value, gradient, curvature = objective(point)
    for _ in range(_MAX_STEPS):
        step = np.linalg.solve(curvature, gradient)
        rise = float(step @ gradient)
        share = 1.0
        # Near the maximum the rise is below the rounding of the value itself.
        while objective(point + share * step)[0] < value + 0.1 * share * rise - 1e-13 * abs(value):
            share /= 2
        point = point + share * step
        if share * float(np.abs(step).max(initial=0.0)) <= _SMALLEST_STEP * (1 + float(np.abs(point).max())):
            return point
        value, gradient, curvature = objective(point)
    raise InvalidInput(
        "comparisons",
        got="a likelihood that rises without end",
        allowed="comparisons that bound every worth, or a precision above 0",
    )
