"""The multiple-choice knapsack: one option for each part of a model, within limits, at the least loss."""

from typing import Any


def knapsack(options: list[list[dict[str, Any]]], limits: dict[str, float], loss: str = "kl") -> list[int] | None:
    """One option of each list at the least total `loss`, its sums within `limits` (name -> most); None if none fits.

    Solved to a gap of 1e-4 (Sinha and Zoltners 1979 for the problem; HiGHS for the solution).
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    if min(limits.values()) <= 0:
        return None
    costs = np.array([option[loss] for found in options for option in found])
    sizes = {name: np.array([option[name] for found in options for option in found]) for name in limits}
    owner = np.repeat(np.arange(len(options)), [len(found) for found in options])
    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    scale = max(float(costs.max()), 1e-30)
    solved = milp(
        costs / scale,
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            *(LinearConstraint(sizes[name][None] / most, -np.inf, 1.0) for name, most in limits.items()),
        ],
        options={"mip_rel_gap": 1e-4, "time_limit": 60},
    )
    if solved.x is None:
        return None
    return [int(solved.x[owner == number].argmax()) for number in range(len(options))]
