"""The handwritten digits as a dataset."""

from collections import Counter

import numpy as np
import pytest

from clipkal.data import draw_task, load_dataset
from clipkal.data.digits import CHANGES, SHARES, WORLD_STYLES, digit_set, split_rows
from clipkal.data.world.render import HANDWRITTEN_SHARES
from clipkal.errors import DataError


@pytest.fixture(scope="module")
def dataset(config, tmp_path_factory):
    return load_dataset(config("digits", templates=["a photo of a {}"]), tmp_path_factory.mktemp("none"))


def test_the_world_draws_its_handwritten_test_digits_from_test_scans():
    assert SHARES == HANDWRITTEN_SHARES


def test_every_scan_is_in_one_split():
    rows = [row for split in ("train", "val", "test") for row in split_rows(split)]
    assert sorted(rows) == list(range(1797))


def test_sizes_classes_and_prompts(dataset):
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (896, 178, 723)
    assert min(Counter(dataset.train.labels.tolist()).values()) >= 80
    assert (dataset.class_names[0], dataset.class_names[-1]) == ("zero", "nine")
    assert dataset.prompts[0] == ["a photo of a digit zero", "a photo of a number zero", "a photo of a zero"]
    assert list(dataset.ood) == [*CHANGES, *WORLD_STYLES]
    assert len(draw_task(dataset, 16, 1, "fewshot").shots) == 160


@pytest.mark.parametrize("domain", ["plain", *CHANGES])
def test_domains_show_the_same_digits_in_another_way(domain):
    one, plain = digit_set(domain, "test"), digit_set("plain", "test")
    image = one.decode(5)
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert image.tobytes() == digit_set(domain, "test").decode(5).tobytes()
    assert one.labels.tolist() == plain.labels.tolist()
    assert (domain == "plain") == (image.tobytes() == plain.decode(5).tobytes())
    assert one.ids[0].startswith(f"{domain}/test/zero/")


def test_ink_is_dark_on_pale_paper_and_inverted_is_its_negative():
    plain, negative = (np.asarray(digit_set(d, "test").decode(0)).astype(int) for d in ("plain", "inverted"))
    assert plain[0, 0].tolist() == [245] * 3
    assert plain.min() < 40
    assert (plain + negative == 255).all()


@pytest.mark.parametrize("style", WORLD_STYLES)
def test_styles_of_the_world_draw_the_scans(dataset, style):
    one = dataset.ood[style]
    assert (len(one), one.decode(0).size) == (400, (64, 64))
    assert Counter(one.labels.tolist()) == dict.fromkeys(range(10), 40)


def test_bad_names(config, tmp_path):
    for fields, said in (
        ({"ood": ["rotate"]}, "did you mean 'rotated'"),
        ({"id_domain": "photo"}, "'photo' is unknown"),
        ({"ood": ["x:somewhere"]}, "somewhere: no such file or folder"),
    ):
        with pytest.raises(DataError, match=said):
            load_dataset(config("digits", **fields), tmp_path)
