"""The embedded world as a dataset."""

import pytest

from clipkal.data import draw_task, load_dataset
from clipkal.data.rendered import rendered_set
from clipkal.data.world import STYLES, TARGET_CLASSES, phrases
from clipkal.errors import DataError


@pytest.fixture(scope="module")
def dataset(config, tmp_path_factory):
    return load_dataset(config("rendered", templates=["a photo of a {}"]), tmp_path_factory.mktemp("none"))


def test_the_default_learns_from_photos_and_is_shifted_to_every_other_style(dataset):
    assert dataset.class_names == list(TARGET_CLASSES)
    assert list(dataset.ood) == [style for style in STYLES if style != "photo"]
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (24 * 32, 24 * 8, 24 * 25)
    assert dataset.test.ids[0] == f"photo/test/{TARGET_CLASSES[0]}/0000"


def test_prompts_are_templates_with_the_words_of_the_world(dataset):
    for name, sentences in zip(dataset.class_names, dataset.prompts, strict=True):
        assert sentences == [f"a photo of a {phrase}" for phrase in phrases(name)]


def test_images_are_drawn_lazily_a_class_at_a_time(dataset):
    task = draw_task(dataset, 1, 1)
    image = task.shots.decode(3)
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert len(dataset.train.decode._drawn) == 1


def test_pixels_and_digests_are_those_of_the_name():
    names = ["fish", "anchor"]
    one, two = rendered_set(names, "sketch", "test", 3), rendered_set(names, "sketch", "test", 3)
    assert one.decode(4).tobytes() == two.decode(4).tobytes()
    alone = rendered_set(["anchor"], "sketch", "test", 2)
    assert alone.decode(1).tobytes() == one.decode(4).tobytes(), "an image depends on its name alone"
    assert one.digest == two.digest != rendered_set(names, "sketch", "val", 3).digest


def test_other_id_domains_and_bad_names(config, tmp_path):
    turned = load_dataset(config("rendered", id_domain="sketch", ood=["photo", "fog@2"]), tmp_path)
    assert (turned.train.name, list(turned.ood)) == ("sketch/train", ["photo", "fog@2"])
    for fields, said in (
        ({"id_domain": "foto"}, "did you mean 'photo'"),
        ({"ood": ["skech"]}, "did you mean 'sketch'"),
        ({"ood": ["x:somewhere"]}, "somewhere: no such file or folder"),
    ):
        with pytest.raises(DataError, match=said):
            load_dataset(config("rendered", **fields), tmp_path)
