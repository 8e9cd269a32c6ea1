"""How the forty shapes of the world are drawn and described.

A shape is drawn in the square -1..1 (y downward) as a signed distance that varies with four uniform numbers.
It is described by adjectives and parts; the words are shared between shapes, so that a model which learns
what "a stick" and "a round head" look like can tell a lollipop it has never seen from an hourglass it has
never seen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipkal.data.world.catalogue import Chance, shape
from clipkal.data.world.sdf import (
    Point,
    box,
    circle,
    ellipse,
    minus,
    outline,
    polar,
    polygon,
    regular_polygon,
    star,
    stick,
    union,
)


@shape("disc", "round solid", "one circle")
def _disc(p: Tensor, c: Chance) -> Tensor:
    return ellipse(p, c.between(0, 0.75, 0.95), c.between(1, 0.75, 0.95))


@shape("ring", "round hollow", "one circle", "a hole")
def _ring(p: Tensor, c: Chance) -> Tensor:
    return outline(circle(p, 0.75), c.between(0, 0.1, 0.22))


@shape("square", "boxy solid", "four corners", "straight edges")
def _square(p: Tensor, c: Chance) -> Tensor:
    return box(p, c.between(0, 0.65, 0.8), c.between(1, 0.65, 0.8), rounding=0.08)


@shape("triangle", "pointed solid", "three corners", "straight edges", "a pointed top", "a flat bottom")
def _triangle(p: Tensor, c: Chance) -> Tensor:
    right, left = c.between(1, 0.7, 0.95), -c.between(2, 0.7, 0.95)
    return polygon(p, [(c.between(0, -0.2, 0.2), -0.9), (right, 0.75), (left, 0.75)])


@shape("star", "pointed solid", "many spikes", "straight edges")
def _star(p: Tensor, c: Chance) -> Tensor:
    return star(p, 5, 0.98, c.between(0, 0.35, 0.55))


@shape("heart", "curved solid", "two bumps", "a pointed bottom")
def _heart(p: Tensor, c: Chance) -> Tensor:
    point = polygon(p, [(-0.8, -0.02), (0.8, -0.02), (0.0, c.between(0, 0.75, 0.98))])
    return union(
        circle(p, 0.47, -0.42, -0.3), circle(p, 0.47, 0.42, -0.3), point, box(p, 0.42, 0.25, 0.0, -0.1)
    )


@shape("cross", "boxy", "four arms", "straight edges")
def _cross(p: Tensor, c: Chance) -> Tensor:
    thickness = c.between(0, 0.18, 0.32)
    return union(box(p, thickness, 0.9), box(p, 0.9, thickness))


@shape("crescent", "curved thin", "two pointed ends")
def _crescent(p: Tensor, c: Chance) -> Tensor:
    return minus(circle(p, 0.9), circle(p, 0.8, c.between(0, 0.35, 0.55), c.between(1, -0.15, 0.15)))


@shape("arrow", "long pointed", "a stick", "one triangle")
def _arrow(p: Tensor, c: Chance) -> Tensor:
    wing = c.between(1, 0.45, 0.65)
    head = polygon(p, [(0.95, 0.0), (0.2, -wing), (0.2, wing)])
    return union(stick(p, (-0.85, 0.0), (0.3, 0.0), c.between(0, 0.1, 0.2)), head)


@shape("hexagon", "solid", "six corners", "straight edges")
def _hexagon(p: Tensor, c: Chance) -> Tensor:
    return regular_polygon(p, 6, 0.92)


@shape("gear", "round", "teeth", "a hole")
def _gear(p: Tensor, c: Chance) -> Tensor:
    r, angle = polar(p)
    wheel = r - (0.75 + 0.15 * torch.tanh(4 * torch.sin(angle * 8)))
    return minus(wheel, circle(p, c.between(0, 0.2, 0.35)))


@shape("flower", "round curved", "many bumps", "petals")
def _flower(p: Tensor, c: Chance) -> Tensor:
    r, angle = polar(p)
    petals = torch.floor(c.between(0, 5, 7.99))
    return (r - (0.62 + c.between(1, 0.18, 0.3) * torch.cos(petals * angle))) * 0.7


@shape("drop", "curved solid", "a pointed top", "a round bottom")
def _drop(p: Tensor, c: Chance) -> Tensor:
    return union(
        circle(p, c.between(0, 0.52, 0.6), 0.0, 0.3), polygon(p, [(0.0, -0.98), (0.52, 0.1), (-0.52, 0.1)])
    )


@shape("lightning", "long pointed", "two pointed ends", "straight edges")
def _lightning(p: Tensor, c: Chance) -> Tensor:
    k = c.between(0, -0.1, 0.1)
    corners: list[Point] = [
        (0.25 + k, -0.98),
        (-0.5, 0.12),
        (-0.05, 0.12),
        (-0.25 - k, 0.98),
        (0.5, -0.2),
        (0.05, -0.2),
    ]
    return polygon(p, corners)


@shape("house", "boxy wide", "a pointed top", "one triangle", "a door", "a flat bottom")
def _house(p: Tensor, c: Chance) -> Tensor:
    roof = polygon(p, [(0.0, -0.9), (0.88, 0.0), (-0.88, 0.0)])
    return minus(union(box(p, 0.62, 0.45, 0.0, 0.4), roof), box(p, 0.16, 0.26, c.between(0, -0.3, 0.3), 0.6))


@shape("tree", "tall pointed", "two triangles", "a pointed top", "a thick stem")
def _tree(p: Tensor, c: Chance) -> Tensor:
    crown = polygon(p, [(0.0, -0.98), (0.5, -0.2), (-0.5, -0.2)])
    skirt = polygon(p, [(0.0, -0.6), (0.72, 0.45), (-0.72, 0.45)])
    return union(crown, skirt, box(p, c.between(0, 0.1, 0.18), 0.3, 0.0, 0.68))


@shape("fish", "long curved", "a round body", "one triangle", "a hole")
def _fish(p: Tensor, c: Chance) -> Tensor:
    body = ellipse(p, c.between(0, 0.6, 0.7), c.between(1, 0.35, 0.5), -0.2, 0.0)
    tail = polygon(p, [(0.25, 0.0), (0.95, -0.45), (0.95, 0.45)])
    return minus(union(body, tail), circle(p, 0.08, -0.5, -0.1))


@shape("cup", "boxy wide", "a handle", "a ring", "a flat bottom")
def _cup(p: Tensor, c: Chance) -> Tensor:
    body = polygon(p, [(-0.6, -0.6), (0.35, -0.6), (c.between(0, 0.15, 0.3), 0.7), (-0.5, 0.7)])
    return union(body, outline(circle(p, 0.32, 0.45, -0.05), 0.09))


@shape("key", "long thin", "a round head", "a ring", "a stick", "teeth")
def _key(p: Tensor, c: Chance) -> Tensor:
    head = outline(circle(p, 0.32, -0.55, 0.0), 0.11)
    teeth = union(box(p, 0.07, 0.2, 0.8, 0.2), box(p, 0.07, c.between(0, 0.12, 0.22), 0.5, 0.2))
    return union(head, stick(p, (-0.2, 0.0), (0.9, 0.0), 0.1), teeth)


@shape("hammer", "tall", "a boxy head", "a stick", "a handle")
def _hammer(p: Tensor, c: Chance) -> Tensor:
    return union(
        box(p, 0.1, 0.75, 0.0, 0.2), box(p, c.between(0, 0.5, 0.65), c.between(1, 0.18, 0.26), 0.0, -0.65)
    )


@shape("umbrella", "wide", "a round top", "a stick", "a hook")
def _umbrella(p: Tensor, c: Chance) -> Tensor:
    y = p[:, 1]
    top = torch.maximum(circle(p, c.between(0, 0.85, 0.95), 0.0, 0.05), y - 0.05)
    hook = torch.maximum(outline(circle(p, 0.17, 0.17, 0.75), 0.06), 0.75 - y)
    return union(top, stick(p, (0.0, 0.0), (0.0, 0.75), 0.06), hook)


@shape("mushroom", "wide curved", "a round top", "a thick stem")
def _mushroom(p: Tensor, c: Chance) -> Tensor:
    cap = torch.maximum(ellipse(p, 0.9, c.between(1, 0.7, 0.85)), p[:, 1])
    return union(cap, box(p, c.between(0, 0.2, 0.32), 0.42, 0.0, 0.4, rounding=0.1))


@shape("boat", "wide pointed", "one triangle", "a stick", "a flat bottom")
def _boat(p: Tensor, c: Chance) -> Tensor:
    hull = polygon(p, [(-0.9, 0.35), (0.9, 0.35), (0.55, 0.8), (-0.55, 0.8)])
    sail = polygon(p, [(0.08, -0.9), (c.between(0, 0.6, 0.8), 0.2), (0.08, 0.2)])
    return union(hull, stick(p, (0.0, -0.9), (0.0, 0.4), 0.05), sail)


@shape("spiral", "round thin curved", "a winding line")
def _spiral(p: Tensor, c: Chance) -> Tensor:
    r, angle = polar(p)
    pitch = c.between(0, 0.4, 0.52)
    turn = torch.remainder(r / pitch - angle / (2 * math.pi), 1.0) - 0.5
    return torch.maximum((turn.abs() - 0.22) * pitch, r - 0.95)


@shape("zigzag", "wide thin pointed", "a winding line", "straight edges")
def _zigzag(p: Tensor, c: Chance) -> Tensor:
    phase = p[:, 0] * c.between(0, 1.2, 1.9) / 2
    wave = 0.45 * (4 * (phase - torch.floor(phase + 0.5)).abs() - 1)
    return torch.maximum((p[:, 1] - wave).abs() * 0.6 - 0.12, p[:, 0].abs() - 0.95)


@shape("ladder", "tall thin", "two sticks", "rungs")
def _ladder(p: Tensor, c: Chance) -> Tensor:
    half = c.between(0, 0.33, 0.46)
    rails = [stick(p, (side * half, -0.95), (side * half, 0.95), 0.08) for side in (-1, 1)]
    return union(*rails, *[stick(p, (-half, y), (half, y), 0.07) for y in (-0.65, -0.22, 0.22, 0.65)])


@shape("butterfly", "wide curved", "four wings", "round ends")
def _butterfly(p: Tensor, c: Chance) -> Tensor:
    span = c.between(0, 0.4, 0.5)
    upper = union(ellipse(p, span, 0.5, -0.48, -0.35), ellipse(p, span, 0.5, 0.48, -0.35))
    lower = union(ellipse(p, 0.33, 0.35, -0.4, 0.45), ellipse(p, 0.33, 0.35, 0.4, 0.45))
    return union(upper, lower, stick(p, (0.0, -0.6), (0.0, 0.7), 0.09))


@shape("flag", "tall boxy", "a stick", "a cloth")
def _flag(p: Tensor, c: Chance) -> Tensor:
    return union(
        stick(p, (-0.6, -0.95), (-0.6, 0.95), 0.07), box(p, 0.65, c.between(0, 0.35, 0.45), 0.05, -0.5)
    )


@shape("cloud", "wide curved", "many bumps", "a flat bottom")
def _cloud(p: Tensor, c: Chance) -> Tensor:
    bumps = union(circle(p, 0.38, -0.5, 0.15), circle(p, c.between(0, 0.45, 0.58), 0.0, -0.12))
    return union(bumps, circle(p, 0.36, 0.52, 0.12), box(p, 0.55, 0.2, 0.0, 0.32))


@shape("car", "wide", "a boxy body", "two circles", "wheels")
def _car(p: Tensor, c: Chance) -> Tensor:
    roof = polygon(p, [(-0.45, -0.5), (0.35, -0.5), (c.between(0, 0.5, 0.7), -0.05), (-0.7, -0.05)])
    wheels = union(circle(p, 0.25, -0.5, 0.45), circle(p, 0.25, 0.5, 0.45))
    return union(box(p, 0.95, 0.25, 0.0, 0.15, rounding=0.1), roof, wheels)


@shape("bottle", "tall", "a boxy body", "a thin neck", "a flat bottom")
def _bottle(p: Tensor, c: Chance) -> Tensor:
    body = box(p, c.between(0, 0.35, 0.48), 0.5, 0.0, 0.42, rounding=0.12)
    return union(body, box(p, 0.14, 0.45, 0.0, -0.45), box(p, 0.2, 0.08, 0.0, -0.88))


@shape("chair", "tall thin", "legs", "a back", "straight edges")
def _chair(p: Tensor, c: Chance) -> Tensor:
    seat = union(box(p, 0.55, 0.09, 0.0, 0.15), box(p, 0.08, 0.42, 0.45, 0.5))
    return union(box(p, 0.08, 0.9, -0.45, 0.0), seat, box(p, 0.12, c.between(0, 0.25, 0.4), -0.45, -0.55))


# From here on: never shown in pretraining.


@shape("lollipop", "long round", "a round head", "a stick")
def _lollipop(p: Tensor, c: Chance) -> Tensor:
    return union(circle(p, c.between(0, 0.4, 0.5), 0.0, -0.42), stick(p, (0.0, 0.0), (0.0, 0.95), 0.07))


@shape("hourglass", "tall pointed", "two triangles", "a thin neck", "a flat bottom")
def _hourglass(p: Tensor, c: Chance) -> Tensor:
    upper = polygon(p, [(-0.65, -0.9), (0.65, -0.9), (0.0, c.between(0, 0.1, 0.2))])
    return union(upper, polygon(p, [(-0.65, 0.9), (0.65, 0.9), (0.0, -0.15)]))


@shape("bowtie", "wide pointed", "two triangles", "four corners")
def _bowtie(p: Tensor, c: Chance) -> Tensor:
    left = polygon(p, [(-0.95, -0.55), (-0.95, 0.55), (0.15, 0.0)])
    right = polygon(p, [(0.95, -0.55), (0.95, 0.55), (-0.15, 0.0)])
    return union(left, right, circle(p, c.between(0, 0.12, 0.22)))


@shape("spoon", "long thin", "a round head", "a stick", "a handle")
def _spoon(p: Tensor, c: Chance) -> Tensor:
    return union(
        ellipse(p, c.between(0, 0.22, 0.3), 0.38, 0.0, -0.55), stick(p, (0.0, -0.3), (0.0, 0.95), 0.07)
    )


@shape("dumbbell", "long curved", "two circles", "a stick", "round ends")
def _dumbbell(p: Tensor, c: Chance) -> Tensor:
    radius = c.between(0, 0.3, 0.4)
    weights = union(circle(p, radius, -0.6, 0.0), circle(p, radius, 0.6, 0.0))
    return union(weights, stick(p, (-0.6, 0.0), (0.6, 0.0), 0.1))


@shape("snowman", "tall curved", "two circles", "many bumps", "a round bottom")
def _snowman(p: Tensor, c: Chance) -> Tensor:
    belly = circle(p, 0.36, c.between(0, -0.06, 0.06), -0.2)
    return union(circle(p, 0.5, 0.0, 0.48), belly, circle(p, 0.25, 0.0, -0.7))


@shape("anchor", "thin curved", "a stick", "a ring", "a hook", "two pointed ends")
def _anchor(p: Tensor, c: Chance) -> Tensor:
    arc = torch.maximum(outline(circle(p, c.between(0, 0.66, 0.76), 0.0, 0.12), 0.08), 0.25 - p[:, 1])
    bar = stick(p, (-0.32, -0.35), (0.32, -0.35), 0.06)
    return union(
        outline(circle(p, 0.15, 0.0, -0.78), 0.06), stick(p, (0.0, -0.6), (0.0, 0.85), 0.07), bar, arc
    )


@shape("candle", "tall boxy", "a boxy body", "a pointed top", "a flat bottom")
def _candle(p: Tensor, c: Chance) -> Tensor:
    body = box(p, c.between(0, 0.18, 0.28), 0.55, 0.0, 0.4)
    return union(body, ellipse(p, 0.13, 0.26, 0.0, -0.55), box(p, 0.03, 0.12, 0.0, -0.2))
