"""Features are unit rows that depend on the image and the weights, and on nothing else."""

import threading
import weakref

import pytest
import torch
from tiny_clip import backbone_of, image_set, settings
from torch.nn import functional as F

from clipkal.backbones import image_features, load_backbone, text_features
from clipkal.backbones.features import CHUNK
from clipkal.errors import BackboneError, ConfigError, DataError


@pytest.fixture(params=["vit_folder", "resnet_folder"])
def folder(request):
    return request.getfixturevalue(request.param)


def features(backbone, images, **more):
    return image_features(backbone, images, **({"cache_dir": False} | more))[0].inputs


def test_features_are_what_the_model_says_one_image_at_a_time(folder):
    backbone, images = backbone_of(folder), image_set(7)
    seen, skipped = image_features(backbone, images, cache_dir=False)
    assert (seen.name, seen.ids, skipped) == (images.name, images.ids, [])
    assert torch.equal(seen.labels, images.labels)
    assert seen.inputs.dtype == torch.float32 and seen.inputs.shape == (7, 24)
    for i in range(7):
        with torch.no_grad():
            alone = backbone.model.encode_image(backbone.preprocess(images.decode(i))[None])
        torch.testing.assert_close(seen.inputs[i : i + 1], F.normalize(alone, dim=-1), atol=1e-5, rtol=0)


def test_rows_have_length_one_and_can_enter_training(folder):
    found = features(backbone_of(folder), image_set())
    torch.testing.assert_close(found.norm(dim=1), torch.ones(10), atol=1e-6, rtol=0)
    weight = torch.eye(24, requires_grad=True)
    (found @ weight).sum().backward()
    assert weight.grad is not None


def test_neither_batch_size_nor_workers_nor_repetition_change_them(folder):
    images = image_set(9)
    reference = features(backbone_of(folder, batch_size=9), images)
    assert torch.equal(reference, features(backbone_of(folder, batch_size=9), images))
    for size in (1, 2, 4, 64):
        torch.testing.assert_close(
            features(backbone_of(folder, batch_size=size), images), reference, atol=1e-5, rtol=0
        )
    four = backbone_of(folder, batch_size=4)
    assert torch.equal(features(four, images, workers=2), features(four, images))


@pytest.mark.parametrize("n", [48, 144])
def test_memory_does_not_grow_with_the_set(vit_folder, n):
    """At most three batches live, the one the model sees and two to come, and what the threads hold."""
    backbone, alive, most = backbone_of(vit_folder, batch_size=16), 0, 0
    lock, preprocess = threading.Lock(), backbone.preprocess

    def count(change):
        nonlocal alive, most
        with lock:
            alive += change
            most = max(most, alive)

    def counted(image):
        tensor = preprocess(image)
        count(1)
        weakref.finalize(tensor, count, -1)
        return tensor

    object.__setattr__(backbone, "preprocess", counted)
    features(backbone, image_set(n), workers=2)
    assert alive == 0
    assert 16 <= most <= 3 * 16 + 3 * CHUNK


def test_the_next_batch_is_decoded_while_the_model_is_busy(vit_folder):
    backbone, begun, waited = backbone_of(vit_folder, batch_size=2 * CHUNK), threading.Event(), []
    images, preprocess = image_set(4 * CHUNK), backbone.preprocess  # two batches
    last = images.decode(len(images) - 1).tobytes()

    def watched(image):
        if image.tobytes() == last:
            begun.set()
        return preprocess(image)

    object.__setattr__(backbone, "preprocess", watched)
    backbone.model.visual.register_forward_hook(lambda *_: waited.append(begun.wait(30)))
    features(backbone, images, workers=1)
    assert waited == [True, True]


def test_no_thread_outlives_an_error(vit):
    with pytest.raises(DataError):
        features(vit, image_set(64, bad={1}), workers=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("clipkal")]


def test_the_random_stream_is_left_alone(vit):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    features(vit, image_set())
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.03), ("fp16", 0.01)])
def test_reduced_precision_is_close_and_leaves_the_model_as_it_was(folder, precision, tolerance):
    full, reduced = backbone_of(folder), backbone_of(folder, precision=precision)
    found = features(reduced, image_set())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(10), atol=1e-6, rtol=0)
    reference = features(full, image_set())
    torch.testing.assert_close(found, reference, atol=tolerance, rtol=0)
    assert not torch.equal(found, reference)
    assert {p.dtype for p in reduced.model.parameters()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.03), ("fp16", 0.01)])
def test_a_gpu_gives_what_the_cpu_gives(folder, precision, tolerance):
    on_gpu = load_backbone(settings(folder, precision=precision), device="cuda")
    assert on_gpu is not None and on_gpu.digest == backbone_of(folder).digest
    found = features(on_gpu, image_set(), workers=2)
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, features(backbone_of(folder), image_set()), atol=tolerance, rtol=0)
    text = text_features(on_gpu, [["a cat"], ["a dog"]], cache_dir=False)
    reference = text_features(backbone_of(folder), [["a cat"], ["a dog"]], cache_dir=False)
    torch.testing.assert_close(text, reference, atol=1e-3, rtol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_an_error_that_names_it(vit, workers):
    with pytest.raises(DataError, match=r"^image6\.jpg is truncated$"):
        image_features(vit, image_set(bad={6, 8}), cache_dir=False, workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_can_be_skipped_and_is_reported(vit, workers, caplog):
    images = image_set(bad={0, 4, 5, 6, 7})
    seen, skipped = image_features(vit, images, cache_dir=False, workers=workers, on_bad_image="skip")
    assert skipped == [images.ids[i] for i in (0, 4, 5, 6, 7)]
    assert seen.ids == [images.ids[i] for i in (1, 2, 3, 8, 9)]
    assert seen.labels.tolist() == [1, 0, 1, 0, 1]
    torch.testing.assert_close(seen.inputs, features(vit, image_set())[[1, 2, 3, 8, 9]], atol=1e-5, rtol=0)
    assert [r.getMessage() for r in caplog.records] == [
        "photo/test: 5 images skipped, the first: image0.jpg is truncated"
    ]


def test_a_set_of_bad_images_only_is_an_error(vit):
    with pytest.raises(DataError, match="not one of its 2 images"):
        image_features(vit, image_set(2, bad={0, 1}), cache_dir=False, on_bad_image="skip")


def test_a_bug_in_a_decoder_is_not_taken_for_a_bad_image(vit):
    images = image_set(3)
    images.decode.seed = "no number"
    with pytest.raises(TypeError):
        image_features(vit, images, cache_dir=False, on_bad_image="skip")


def test_features_that_are_not_finite_are_an_error(vit):
    with torch.no_grad():
        vit.model.visual.proj.fill_(float("inf"))
    with pytest.raises(BackboneError, match="not finite for photo/test in fp32"):
        features(vit, image_set())


@pytest.mark.parametrize("choice", [{"on_bad_image": "ignore"}, {"workers": -1}])
def test_unknown_choices_are_named(vit, choice):
    with pytest.raises(ConfigError, match=next(iter(choice))):
        features(vit, image_set(), **choice)
