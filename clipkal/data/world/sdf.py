"""Signed distances of plane figures: negative inside, positive outside, in the units of the coordinates.

Every function takes `p`, the coordinates, as a float tensor [n, 2, H, W] (x to the right, y *downward*) and
returns [n, H, W]. A measure may be a number, the same for all images, or a tensor [n, 1, 1], one per image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Number = float | Tensor
Point = tuple[Number, Number]
_TINY = 1e-9  # keeps square roots differentiable and away from exact zero


def circle(p: Tensor, radius: Number, cx: Number = 0.0, cy: Number = 0.0) -> Tensor:
    """A disc of `radius` around (cx, cy)."""
    return torch.sqrt((p[:, 0] - cx) ** 2 + (p[:, 1] - cy) ** 2 + _TINY) - radius


def ellipse(p: Tensor, a: Number, b: Number, cx: Number = 0.0, cy: Number = 0.0) -> Tensor:
    """An ellipse with half axes `a` (x) and `b` (y); the distance is approximate, good near the outline."""
    k = torch.sqrt(((p[:, 0] - cx) / a) ** 2 + ((p[:, 1] - cy) / b) ** 2 + _TINY)
    return (k - 1) * torch.minimum(torch.as_tensor(a), torch.as_tensor(b))


def box(
    p: Tensor,
    half_width: Number,
    half_height: Number,
    cx: Number = 0.0,
    cy: Number = 0.0,
    rounding: float = 0.0,
) -> Tensor:
    """An upright rectangle, its corners rounded by `rounding`."""
    dx = (p[:, 0] - cx).abs() - half_width + rounding
    dy = (p[:, 1] - cy).abs() - half_height + rounding
    outside = torch.sqrt(dx.clamp(min=0) ** 2 + dy.clamp(min=0) ** 2 + _TINY)
    return outside + torch.maximum(dx, dy).clamp(max=0) - rounding


def stick(p: Tensor, start: Point, end: Point, thickness: Number) -> Tensor:
    """A straight line with round ends, `thickness` to each side."""
    (ax, ay), (bx, by) = start, end
    px, py, dx, dy = p[:, 0] - ax, p[:, 1] - ay, bx - ax, by - ay
    along = ((px * dx + py * dy) / (dx * dx + dy * dy + _TINY)).clamp(0, 1)
    return torch.sqrt((px - along * dx) ** 2 + (py - along * dy) ** 2 + _TINY) - thickness


def polygon(p: Tensor, corners: Sequence[Point]) -> Tensor:
    """A closed polygon, exact also where it is concave (sign by the winding of the crossed edges)."""
    x, y = p[:, 0], p[:, 1]
    squared = torch.full_like(x, math.inf)
    sign = torch.ones_like(x)
    for (ax, ay), (bx, by) in zip(corners, [corners[-1], *corners[:-1]], strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        along = ((wx * ex + wy * ey) / (ex * ex + ey * ey + _TINY)).clamp(0, 1)
        squared = torch.minimum(squared, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
        above, below, left = y >= ay, y < by, ex * wy > ey * wx
        sign = torch.where((above & below & left) | ~(above | below | left), -sign, sign)
    return sign * torch.sqrt(squared + _TINY)


def polar(p: Tensor) -> tuple[Tensor, Tensor]:
    """Distance from the origin and angle in radians."""
    return torch.sqrt(p[:, 0] ** 2 + p[:, 1] ** 2 + _TINY), torch.atan2(p[:, 1], p[:, 0])


def regular_polygon(p: Tensor, sides: int, radius: float) -> Tensor:
    """A regular polygon, one corner straight up."""
    r, angle = polar(p)
    half = math.pi / sides
    folded = torch.remainder(angle + math.pi / 2, 2 * half) - half
    return r * torch.cos(folded) - radius * math.cos(half)


def star(p: Tensor, spikes: int, outer: Number, inner: Number) -> Tensor:
    """A star with one spike straight up."""
    corners: list[Point] = []
    for i in range(2 * spikes):
        radius, angle = (inner if i % 2 else outer), -math.pi / 2 + i * math.pi / spikes
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    return polygon(p, corners)


def union(*figures: Tensor) -> Tensor:
    """The points of any of the figures."""
    result = figures[0]
    for figure in figures[1:]:
        result = torch.minimum(result, figure)
    return result


def minus(figure: Tensor, hole: Tensor) -> Tensor:
    """The points of `figure` that are not in `hole`."""
    return torch.maximum(figure, -hole)


def outline(figure: Tensor, thickness: Number) -> Tensor:
    """The line along the border of `figure`, `thickness` to each side."""
    return figure.abs() - thickness
