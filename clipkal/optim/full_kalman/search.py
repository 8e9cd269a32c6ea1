"""A one-dimensional maximiser for a smooth function that is dear to evaluate: walk until bracketed, then fit parabolas."""

from collections.abc import Callable


def maximise(
    function: Callable[[float], float],
    start: float,
    step: float,
    tolerance: float,
    bounds: tuple[float, float],
    gain: float = 0.0,
    max_evaluations: int = 16,
) -> tuple[float, int]:
    """Maximiser of `function` near `start` inside `bounds`, and the number of evaluations.

    Walks uphill from `start` by `step` until the value rises by no more than `gain`, then follows the vertex of the parabola
    through the best point and its two neighbours. A vertex within `tolerance` of a point already seen is returned as it is. A
    boundary is returned where the function still rises there.
    """
    low, high = bounds
    values: dict[float, float] = {}

    def at(u: float) -> float:
        if u not in values:
            values[u] = function(u)
        return values[u]

    u = min(max(start, low), high)
    neighbour = u + step if u + step <= high else u - step
    direction = step if neighbour > u else -step
    if at(neighbour) < at(u):
        u, neighbour, direction = neighbour, u, -direction
    while len(values) < max_evaluations:
        u, neighbour = neighbour, min(max(neighbour + direction, low), high)
        if neighbour == u or at(neighbour) <= at(u) + gain:
            break
    while len(values) < max_evaluations:
        best = max(values, key=values.__getitem__)
        vertex = _vertex(values, best)
        if vertex is None:
            break
        if min(abs(vertex - v) for v in values) < tolerance:
            return vertex, len(values)
        at(vertex)
    return max(values, key=values.__getitem__), len(values)


def _vertex(values: dict[float, float], best: float) -> float | None:
    """Vertex of the parabola through `best` and its nearest neighbours; None at a boundary."""
    below = max((u for u in values if u < best), default=None)
    above = min((u for u in values if u > best), default=None)
    if below is None or above is None:
        return None
    left, right = best - below, above - best
    rise, fall = (values[best] - values[below]) / left, (values[best] - values[above]) / right
    if rise + fall <= 0:
        return None
    return best + 0.5 * (rise * right - fall * left) / (rise + fall)
