"""Beds of simulated shift and the encoder of real images that some of them go through."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from benchmarks import simulated_shift
from benchmarks.encoder import MAP, WEIGHTS, Encoder, prepared
from benchmarks.simulated_shift import (
    DEVELOPMENT,
    KEPT,
    KINDS,
    SEVERITIES,
    Bed,
    halves,
    main,
    make,
    moved,
    moved_bed,
    packed,
)
from clipkal.config.compose import compose
from clipkal.data import load_dataset

CLASSES = ("apple", "pear", "plum")


# The encoder


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """torchvision's MobileNetV2 with random weights and random statistics of BatchNorm."""
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    model = mobilenet_v2(num_classes=1001).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 1, 2)
            torch.nn.init.normal_(module.bias, std=0.5)
    return model


@pytest.fixture(scope="module")
def folder(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights, folded, and a random map."""
    path = tmp_path_factory.mktemp("models")
    np.savez(path / WEIGHTS, **folded(network))
    generator = np.random.default_rng(0)
    shapes = {"ridge": (1280, 6), "feature_mean": 1280, "vocabulary_mean": 6, "imagenet_text": (9, 6)}
    arrays = {name: generator.normal(size=shape) for name, shape in shapes.items()}
    np.savez(path / MAP, **arrays, imagenet_index=np.arange(0, 900, 100), temperature=1.5)
    return path


def folded(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """Every convolution with the BatchNorm after it, under the convolution's name."""
    found, last = {}, ""
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            last, found[name] = name, module
        elif isinstance(module, torch.nn.BatchNorm2d):
            found[last] = torch.nn.utils.fuse_conv_bn_eval(found[last], module)
    found["classifier.1"] = network.classifier[1]
    return {
        f"{name}.{part}": getattr(module, part).detach().numpy()
        for name, module in found.items()
        for part in ("weight", "bias")
    }


def test_the_network_is_torchvisions(network: torch.nn.Module, folder: Path) -> None:
    """At 161 pixels every halved map has an odd side, where SAME padding is the symmetric one of torchvision."""
    x = torch.randn(2, 3, 161, 161)
    with torch.no_grad():
        expected = network.features(x).mean(dim=(2, 3))
        torch.testing.assert_close(Encoder(folder).pooled(x), expected, rtol=1e-3, atol=1e-4)


def test_even_sides_are_padded_to_the_right_and_the_bottom(network: torch.nn.Module, folder: Path) -> None:
    x = torch.randn(1, 3, 8, 8)
    weights = folded(network)
    weight, bias = (torch.from_numpy(weights[f"features.0.0.{part}"]) for part in ("weight", "bias"))
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2)
    torch.testing.assert_close(Encoder(folder)._conv("features.0.0", x, stride=2), expected)


def test_the_map_is_conse_plus_ridge(folder: Path) -> None:
    encoder = Encoder(folder)
    pooled = torch.rand(3, 1280)
    arrays, weights = np.load(folder / MAP), np.load(folder / WEIGHTS)
    unit = lambda v: v / np.linalg.norm(v)
    for x, found in zip(pooled.double().numpy(), encoder._mapped(pooled), strict=True):
        logits = weights["classifier.1.weight"] @ x + weights["classifier.1.bias"]
        odds = np.exp(logits[1 + arrays["imagenet_index"]] / 1.5)
        conse = unit((odds / odds.sum()) @ (arrays["imagenet_text"] - arrays["vocabulary_mean"]))
        ridge = unit((unit(x) - arrays["feature_mean"]) @ arrays["ridge"])
        assert found.numpy() == pytest.approx(unit(conse + ridge), abs=1e-4)


def test_features_do_not_depend_on_the_batch(folder: Path) -> None:
    generator = np.random.default_rng(0)
    sizes = [(40, 60), (64, 40), (50, 50)]
    images = [Image.fromarray(generator.integers(256, size=(*size, 3), dtype=np.uint8)) for size in sizes]
    encoder = Encoder(folder)
    together = encoder(images)
    torch.testing.assert_close(together, encoder(images, batch=1), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    assert encoder([]).shape == (0, 6)


def test_an_image_is_its_centre() -> None:
    """A white square between black sides, all of which a centre crop cuts off."""
    pixels = np.zeros((100, 300, 3), dtype=np.uint8)
    pixels[:, 90:210] = 255
    found = prepared(Image.fromarray(pixels), 50)
    assert found.shape == (3, 50, 50)
    assert bool((found == 1).all())


@pytest.mark.parametrize(
    ("images", "features"),
    [
        ("officecaltech10_96", "officecaltech10"),
        ("grocery_96", "grocery"),
        ("caltech101_96", "caltech53"),
    ],
)
def test_real_images_get_their_stored_features(shared_data: Path, images: str, features: str) -> None:
    with (
        np.load(shared_data / f"{images}.npz") as stored,
        np.load(shared_data / "features" / f"{features}.npz") as seen,
    ):
        classes, names = seen["classes"].tolist(), stored["classes"][stored["label"]]
        rows = np.flatnonzero(np.isin(names, classes))
        places = np.random.default_rng(0).choice(len(rows), 6, replace=False)
        blob, offset, expected = stored["blob"], stored["offset"], seen["image_features"][places]
        assert names[rows[places]].tolist() == [classes[label] for label in seen["label"][places]]
    found = Encoder(shared_data / "models")(
        Image.open(io.BytesIO(blob[offset[row] : offset[row + 1]].tobytes())) for row in rows[places]
    )
    cosine = (found * F.normalize(torch.from_numpy(expected).float(), dim=1)).sum(dim=1)
    assert float(cosine.min()) > 0.999


# Which images


@pytest.mark.parametrize(
    ("train", "val", "kept", "development"),
    [
        (4, 1, 2, 3),  # half of few
        (15, 3, 8, 10),
        (16, 3, 16, 3),  # 16 shots come first
        (20, 5, 16, 9),
        (50, 6, 25, DEVELOPMENT),
        (1, 0, 1, 0),
        (50, 40, 25, DEVELOPMENT),
    ],
)
def test_half_of_train_and_all_of_val_are_development_images(
    train: int, val: int, kept: int, development: int
) -> None:
    labels = torch.arange(3).repeat
    stay, second, third = halves(labels(train), labels(val))
    assert Counter(labels(train)[stay].tolist()) == dict.fromkeys(range(3), kept)
    assert len(second) + len(third) == 3 * development
    assert len(set(torch.cat([stay, second]).tolist())) == len(stay) + len(second)
    assert len(set(third.tolist())) == len(third)


# Beds of features


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """features/plain.npz: two domains and three splits of three classes; test rows are all ones."""
    generator = np.random.default_rng(0)
    label = np.tile(np.repeat(np.arange(3), 20), 4)
    domain, split = np.repeat([0, 0, 0, 1], 60), np.repeat([0, 1, 2, 0], 60)
    text = np.eye(3, 16)
    rows = unit(text[label] + 0.2 * generator.normal(size=(240, 16)))
    rows[split == 2] = 0.25
    (tmp_path / "features").mkdir()
    np.savez(
        tmp_path / "features" / "plain.npz",
        image_features=rows.astype(np.float16),
        text_features=text.astype(np.float32),
        logit_scale=10.0,
        label=label,
        domain=domain,
        split=split,
        classes=np.array(CLASSES),
        domains=np.array(["own", "other"]),
        splits=np.array(["train", "val", "test"]),
    )
    return tmp_path


@pytest.mark.parametrize("kept", KEPT)
def test_features_move_until_accuracy_has_fallen(stored: Path, kept: float) -> None:
    bed, _ = moved_bed("plain", "own", stored)
    found = moved(bed, kept, seed=1)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(bed.development)))
    clean = bed.accuracy(bed.development)
    assert clean * (kept - 0.1) < bed.accuracy(found) <= clean * kept
    assert torch.equal(found, moved(bed, kept, seed=1))


def test_features_move_only_where_images_differ() -> None:
    """The clean features differ in two coordinates of four; the others stay at zero."""
    train = F.normalize(torch.cat([torch.randn(40, 2), torch.zeros(40, 2)], dim=1), dim=1)
    labels = train[:, :2].argmax(dim=1)
    bed = Bed(
        ["a", "b"], torch.eye(2, 4), 1.0, train, train, torch.cat([labels, labels]), list(map(str, range(80)))
    )
    found = moved(bed, 0.7, seed=0)
    assert float(found[:, 2:].abs().max()) < 1e-6
    common = (found - train).mean(dim=0)
    assert float(common.norm()) > 0.05


def test_a_bed_of_features_is_a_dataset(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(simulated_shift.BEDS, "plain", lambda data: moved_bed("plain", "own", data))
    make("plain", stored, stored)
    dataset = loaded(stored / "plain.npz")
    assert list(dataset.ood) == ["shift@1", "shift@2", "shift@3"]
    assert (len(dataset.train), dataset.val, len(dataset.test)) == (48, None, 60)
    ones = torch.full((16,), 0.25)
    for one in (dataset.train, dataset.test, *dataset.ood.values()):
        assert not bool(torch.isclose(one.inputs, ones, atol=1e-3).all(dim=1).any())
        assert not any("/test/" in name.removeprefix("clean/") for name in one.ids)
    for one in dataset.ood.values():
        assert torch.equal(one.labels, dataset.test.labels)


def loaded(path: Path):
    return load_dataset(
        compose(["dataset=features", f"dataset.path={path}", "dataset.id_domain=clean"]).dataset, path.parent
    )


# Beds of images


class Colours:
    """In the place of the encoder: the mean square of each colour, which tells an edge from a blurred one."""

    def __call__(self, images):
        colours = [(np.asarray(image, dtype=np.float32) ** 2).mean(axis=(0, 1)) + 1 for image in images]
        return F.normalize(torch.tensor(np.array(colours)), dim=1)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packed images of three colours with an edge in each; those of test and of the other domain cannot be decoded."""
    files, label, domain, split = [], [], [], []
    for which, place, count in ((0, 0, 18), (0, 1, 2), (0, 2, 3), (1, 0, 3)):
        for kind in range(4):
            for i in range(count):
                pixels = np.full((40, 40, 3), 10 + i, dtype=np.uint8)
                pixels[i:, :, kind % 3] = 200
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, format="JPEG")
                files.append(buffer.getvalue() if (which, place) in {(0, 0), (0, 1)} else b"no picture")
                label, domain, split = [*label, kind], [*domain, which], [*split, place]
    np.savez(
        tmp_path / "colours_96.npz",
        blob=np.frombuffer(b"".join(files), dtype=np.uint8),
        offset=np.cumsum([0, *map(len, files)]),
        label=np.array(label),
        domain=np.array(domain),
        split=np.array(split),
        classes=np.array([*CLASSES, "without text"]),
        domains=np.array(["own", "other"]),
        splits=np.array(["train", "val", "test"]),
    )
    for name in ("features", "models"):
        (tmp_path / name).mkdir()
    for name in (MAP, WEIGHTS):
        (tmp_path / "models" / name).touch()
    np.savez(
        tmp_path / "features" / "colours.npz",
        text_features=np.eye(3, dtype=np.float32),
        logit_scale=10.0,
        classes=np.array(CLASSES),
    )
    monkeypatch.setattr(simulated_shift, "_encoder", lambda folder: Colours())
    monkeypatch.setitem(
        simulated_shift.BEDS, "colours", lambda data: packed("colours_96", "colours", "own", data)
    )
    return tmp_path


def test_a_bed_of_images_touches_no_test_image(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("colours", pictures, pictures)
    dataset = loaded(pictures / "colours.npz")
    assert list(dataset.ood) == [f"{kind}@{severity}" for kind in KINDS for severity in SEVERITIES]
    assert (len(dataset.train), len(dataset.test)) == (3 * 16, 3 * 4)
    assert not set(dataset.train.ids) & set(dataset.test.ids)
    for name, one in dataset.ood.items():
        assert torch.equal(one.labels, dataset.test.labels)
        assert not torch.equal(one.inputs, dataset.test.inputs), name
    assert "median 16" in capsys.readouterr().out


def test_what_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["simulated_shift", "--data", str(tmp_path), "--out", str(tmp_path / "beds"), "--beds", "cars", "grocery"]  # fmt: skip
    monkeypatch.setattr("sys.argv", words)
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["cars: left out", "grocery: left out"]
    assert "stanford_cars_vitb32.npz" in lines[0]
