"""What a set refuses, and that a subset is the same images under the same names."""

import pickle

import pytest
import torch
from PIL import Image

from clipkal.data import Dataset, FeatureSet, ImageSet
from clipkal.data.checks import check_sets
from clipkal.data.sets import occurring_classes
from clipkal.errors import DataError


def decode_grey(i: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (i, i, i))


def image_set(n: int = 6, name: str = "toy") -> ImageSet:
    return ImageSet(name, [f"a/{i}.png" for i in range(n)], torch.arange(n) % 3, decode_grey, "d" * 64)


def unit(n: int, d: int = 4) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(1)), dim=1)


def grey(image: Image.Image) -> int:
    return image.getpixel((0, 0))[0]


def test_a_subset_keeps_ids_labels_and_pixels_together():
    part = image_set().subset([4, 1]).subset(torch.tensor([1]))
    assert (part.ids, part.labels.tolist(), grey(part.decode(0))) == (["a/1.png"], [1], 1)


def test_the_digest_tells_subsets_apart_and_the_whole_from_its_parts():
    whole = image_set()
    digests = {
        whole.digest,
        whole.subset([0, 1]).digest,
        whole.subset([1, 0]).digest,
        whole.subset([]).digest,
    }
    assert len(digests) == 4
    assert whole.subset(range(6)).digest == whole.digest
    assert whole.with_labels(torch.zeros(6, dtype=torch.int64)).digest not in digests


def test_a_subset_can_be_sent_to_a_worker_process():
    part = pickle.loads(pickle.dumps(image_set().subset([2, 5])))
    assert grey(part.decode(1)) == 5


def test_indices_outside_the_set_are_refused():
    with pytest.raises(IndexError):
        image_set().subset([6])
    with pytest.raises(IndexError):
        image_set().subset([-1])


@pytest.mark.parametrize(
    ("ids", "labels", "said"),
    [
        (["a", "b"], torch.tensor([0]), "2 ids but 1 labels"),
        (["a", "b"], torch.tensor([0, -1]), "-1 is negative"),
        (["a", "b"], torch.tensor([0.0, 1.0]), "expected int64"),
        (["a", "a"], torch.tensor([0, 1]), "'a' appears twice"),
    ],
)
def test_rows_that_do_not_fit_are_refused(ids, labels, said):
    with pytest.raises(DataError, match=said):
        ImageSet("toy", ids, labels, decode_grey, "")
    with pytest.raises(DataError, match=said):
        FeatureSet("toy", ids, labels, unit(len(ids)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f * 2, r"'b' has length 2"),
        (lambda f: f * torch.tensor([[1.0], [float("nan")]]), "'b' is not finite"),
        (lambda f: f * torch.tensor([[1.0], [0.0]]), "'b' has length 0"),
        (lambda f: f.double(), "float64, expected float32"),
        (lambda f: f[:1], r"expected \[2, d\]"),
        (lambda f: f[0], r"expected \[2, d\]"),
    ],
)
def test_features_that_are_not_finite_unit_rows_are_refused(change, said):
    features = unit(2)
    features[0] = torch.tensor([1.0, 0, 0, 0])
    scaled = change(features)
    if scaled.shape == features.shape and scaled.dtype == torch.float32:
        scaled[0] = features[0]
    with pytest.raises(DataError, match=said):
        FeatureSet("toy", ["a", "b"], torch.tensor([0, 1]), scaled)


def test_a_dataset_checks_its_sets_against_its_classes():
    def dataset(**changes):
        one = image_set()
        fields = {"train": one, "val": None, "test": one, "ood": {}, "prompts": [["x"]] * 3} | changes
        return Dataset("toy", ["a", "b", "c"], **fields)

    assert set(dataset(ood={"s": image_set()}).sets()) == {"train", "test", "s"}
    with pytest.raises(DataError, match="cannot be called 'test'"):
        dataset(ood={"test": image_set()})
    with pytest.raises(DataError, match="prompt"):
        dataset(prompts=[["x"]] * 2)
    with pytest.raises(DataError, match="'val' holds no image"):
        dataset(val=image_set(0))
    with pytest.raises(DataError, match="cannot be mixed"):
        dataset(val=FeatureSet("f", ["a"], torch.tensor([0]), unit(1)))
    with pytest.raises(DataError, match="label 7 but there are 3 classes"):
        dataset(ood={"s": image_set(1).with_labels(torch.tensor([7]))})
    with pytest.raises(DataError, match=r"text features are \[2, 4\], expected \[3, d\]"):
        dataset(text_features=unit(2))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a"], r"toy: has 1 class \(a\); at least two are needed"),
        (["crow", "crow", "crow", "duck"], "3 of 4 classes share a name: 'crow', 'crow', 'crow'"),
        (["crow", "Crow ", "polar_bear", "CROW"], "3 of 4 classes share a name: 'crow', 'Crow ', 'CROW'"),
        (["crow", " "], "class 1 is called ' ', which is no name"),
        (["crow", "a\0"], r"class 1 is called 'a\\x00', which is no name"),
        (["crow", "\ud800"], r"class 1 is called '\\ud800', which is no name"),
    ],
)
def test_class_names_that_are_no_task_are_refused(names, said):
    one = image_set(1)
    with pytest.raises(DataError, match=said):
        Dataset("toy", names, [["x"]] * len(names), one, None, one, {})


def test_two_classes_of_one_name_are_said_once(caplog):
    one = image_set(1)
    for _ in range(2):
        Dataset("pairs", ["missile", "mug", "Missile"], [["x"]] * 3, one, None, one, {})
    assert [record.message for record in caplog.records] == [
        "pairs: classes that share a name, which zero-shot cannot tell apart: 'missile' and 'Missile'"
    ]


def test_ids_that_no_file_can_hold_are_refused():
    for bad in ("a\0b", "\ud800"):
        with pytest.raises(DataError, match="is no text that a file can hold"):
            ImageSet("toy", ["a", bad], torch.tensor([0, 1]), decode_grey, "")


def test_occurring_classes_are_the_label_space_of_a_partial_set():
    assert occurring_classes(torch.tensor([5, 1, 5])) == [1, 5]


def test_an_endless_name_does_not_flood_the_line_that_tells_of_it():
    sets = {"train": image_set(), "test": image_set(), "s" * 5000 + "ky": image_set(0)}
    with pytest.raises(DataError) as caught:
        check_sets("toy", 3, sets)
    said = str(caught.value)
    assert said.startswith("toy: the set 'sss")
    assert said.endswith("ssky' holds no image")
    assert len(said) < 300
