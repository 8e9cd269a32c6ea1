"""The image world: same seed same pictures, whatever the batching; disjoint pools; honest captions."""

import random
from itertools import pairwise

import pytest
import torch

from clipkal.data.world import (
    CLASSES,
    DIGITS,
    PRETRAINING_CLASSES,
    SEEN,
    SHAPES,
    STYLES,
    TARGET_CLASSES,
    UNSEEN,
    caption,
    phrases,
    render,
    render_split,
)
from clipkal.data.world.catalogue import Chance
from clipkal.data.world.digits import digit_distance, font_fields, handwritten_fields
from clipkal.data.world.render import HANDWRITTEN_SHARES, block_seed
from clipkal.data.world.sdf import box, circle, minus, polygon, union
from clipkal.data.world.styles import PRETRAINING_STYLES
from clipkal.data.world.surfaces import GRID


def _points(*points: tuple[float, float]) -> torch.Tensor:
    """Coordinates [1, 2, 1, n] of single points."""
    return torch.tensor(points).T[None, :, None, :]


def _images(style: str, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> torch.Tensor:
    ids = torch.tensor([CLASSES.index(name) for name in classes])
    return render(ids, torch.full_like(ids, STYLES.index(style)), seed)[0]


# Signed distances


def test_signs_and_distances_of_simple_figures():
    p = _points((0.0, 0.0), (1.0, 0.0), (0.0, 2.0))
    assert torch.allclose(circle(p, 0.5)[0, 0], torch.tensor([-0.5, 0.5, 1.5]), atol=1e-3)
    assert torch.allclose(box(p, 0.5, 1.0)[0, 0], torch.tensor([-0.5, 0.5, 1.0]), atol=1e-3)


@pytest.mark.parametrize("clockwise", [True, False])
def test_polygon_agrees_with_the_box_it_spans(clockwise):
    corners = [(-0.5, -0.3), (0.5, -0.3), (0.5, 0.3), (-0.5, 0.3)]
    found = polygon(GRID[None], corners if clockwise else corners[::-1])
    assert torch.allclose(found, box(GRID[None], 0.5, 0.3), atol=2e-4)


def test_union_and_minus():
    p = _points((-0.5, 0.0), (0.5, 0.0))
    left, right = circle(p, 0.3, -0.5), circle(p, 0.3, 0.5)
    assert (union(left, right) < 0).all()
    assert (minus(union(left, right), right)[0, 0] < 0).tolist() == [True, False]


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_a_bounded_figure_that_varies(name):
    p = 1.6 * GRID[None].expand(6, -1, -1, -1)
    chance = torch.rand(6, 4, generator=torch.Generator().manual_seed(3))
    distance = SHAPES[name].draw(p, Chance(chance))
    inside = distance < 0
    share = inside.float().mean(dim=(1, 2))
    assert ((share > 0.01) & (share < 0.5)).all()
    beyond = p.norm(dim=1) > 1.5
    assert not (inside & beyond).any()
    assert name == "hexagon" or not torch.equal(distance[0], distance[1])


def test_digit_glyphs_exist_in_every_font_and_differ():
    inside = font_fields() < 0
    share = inside.float().mean(dim=(2, 3))
    assert ((share > 0.02) & (share < 0.5)).all()
    for font in inside:
        assert len({tuple(glyph.flatten().tolist()) for glyph in font}) == 10


def test_handwritten_digits_have_ink_in_the_middle():
    fields, labels = handwritten_fields()
    assert fields.shape[0] == len(labels) == 1797
    assert ((fields < 0).float().mean(dim=(1, 2)) > 0.02).all()
    assert (fields[:, :3] > 0).all()


# Rendering


def test_same_seed_same_images_and_other_seed_others():
    assert torch.equal(_images("photo"), _images("photo"))
    assert not torch.equal(_images("photo"), _images("photo", seed=1))


@pytest.mark.parametrize("style", STYLES)
def test_every_class_is_drawn_distinctly_in_every_style(style):
    images = _images(style)
    assert images.shape == (len(CLASSES), 3, 64, 64)
    assert images.dtype == torch.uint8
    assert (images.float().flatten(1).std(dim=1) > 1).all()
    assert len({image.numpy().tobytes() for image in images}) == len(CLASSES)


@pytest.mark.parametrize("style", ["photo", "sketch", "noisy"])
def test_split_images_do_not_depend_on_batching(style):
    every, labels = render_split(CLASSES[:4], style, "train", 11)
    assert labels.bincount().tolist() == [11] * 4
    alone, _ = render_split(CLASSES[2:3], style, "train", 11)
    fewer, _ = render_split(CLASSES[:4], style, "train", 3)
    assert torch.equal(every[labels == 2], alone)
    assert torch.equal(fewer, torch.cat([every[labels == c][:3] for c in range(4)]))


def test_splits_styles_and_seeds_have_disjoint_pools():
    seeds = {
        block_seed(name, style, split, seed, block)
        for name in CLASSES[:5]
        for style in STYLES
        for split in HANDWRITTEN_SHARES
        for seed in range(3)
        for block in range(4)
    }
    assert len(seeds) == 5 * len(STYLES) * 3 * 3 * 4
    pools = [render_split(SEEN[:3], "photo", split, 8)[0] for split in HANDWRITTEN_SHARES]
    assert len({image.numpy().tobytes() for pool in pools for image in pool}) == 3 * 24


def test_handwritten_pools_are_disjoint_scans():
    shares = sorted(HANDWRITTEN_SHARES.values())
    assert all(low[1] <= high[0] for low, high in pairwise(shares))
    digits = torch.arange(10).repeat(3)
    p = GRID[None].expand(len(digits), -1, -1, -1)
    drawn = [digit_distance(p, digits, torch.Generator().manual_seed(0), share) for share in shares]
    assert not torch.allclose(drawn[0], drawn[1])
    images, labels = render_split(DIGITS, "photo", "test", 2, handwritten=True)
    fonts, _ = render_split(DIGITS, "photo", "test", 2)
    assert images.shape == (20, 3, 64, 64)
    assert labels.tolist() == [d for d in range(10) for _ in range(2)]
    assert not torch.equal(images, fonts)


@pytest.mark.parametrize(
    ("names", "style", "split", "handwritten", "message"),
    [
        (("disc",), "watercolour", "train", False, "unknown style"),
        (("disc",), "photo", "dev", False, "unknown split"),
        (("unicorn",), "photo", "train", False, "unknown classes: unicorn"),
        (("disc", "two"), "photo", "train", True, "only digits"),
    ],
)
def test_wrong_requests_say_what_is_wrong(names, style, split, handwritten, message):
    with pytest.raises(ValueError, match=message):
        render_split(names, style, split, 1, handwritten=handwritten)


def test_no_images_are_no_error():
    images, labels = render_split((), "photo", "train", 4)
    assert images.shape == (0, 3, 64, 64)
    assert labels.shape == (0,)


# Classes and words


def test_class_lists_fit_together():
    assert len(SEEN) == 32
    assert len(UNSEEN) == 8
    assert len(set(CLASSES)) == len(CLASSES) == 50
    assert not set(PRETRAINING_CLASSES) & set(UNSEEN)
    assert len(TARGET_CLASSES) == 24
    assert len(set(TARGET_CLASSES) & set(SEEN)) == 16


def test_unseen_shapes_are_described_in_words_of_seen_ones():
    known = {word for name in SEEN for word in (*SHAPES[name].adjectives, *SHAPES[name].parts)}
    for name in UNSEEN:
        assert {*SHAPES[name].adjectives, *SHAPES[name].parts} <= known
    descriptions = [shape.description for shape in SHAPES.values()]
    assert len(set(descriptions)) == len(descriptions)


def test_captions_name_no_unseen_shape_and_no_held_out_style():
    rng = random.Random(0)
    classes = torch.arange(len(CLASSES)).repeat(4)
    styles = torch.arange(len(PRETRAINING_STYLES)).repeat(40)
    _, attributes = render(classes, styles, 0)
    captions = [
        caption(c, s, attributes, i, rng)
        for i, (c, s) in enumerate(zip(classes.tolist(), styles.tolist(), strict=True))
    ]
    words = {word for text in captions for word in text.split()}
    assert not words & {*UNSEEN, "inverted", "textured", "noisy"}
    for c, text in zip(classes.tolist(), captions, strict=True):
        assert CLASSES[c] not in DIGITS or CLASSES[c] in text.split()
    assert len(set(captions)) > 150


def test_phrases():
    assert phrases("key") == ["key"]
    assert "digit three" in phrases("three")
    assert all("long round" in phrase for phrase in phrases("lollipop"))
    assert any("lollipop" in phrase for phrase in phrases("lollipop"))
    with pytest.raises(KeyError, match="unicorn"):
        phrases("unicorn")
