"""A task keeps its meaning when it is seen through the backbone."""

import sys

import pytest
import torch
from tiny_clip import Painter, image_set

from clipkal.backbones import featurise, image_features, pixelise, text_features
from clipkal.data.sets import FeatureSet
from clipkal.data.task import FewShotTask, Transfer
from clipkal.errors import ConfigError, DataError


def task_of(**bad: set[int]) -> FewShotTask:
    """Four images a set; `bad` places by set."""

    def make(role: str, seed: int):
        return image_set(4, f"photo/{role}", seed=seed, bad=bad.get(role, set()))

    return FewShotTask(
        name="toy",
        class_names=["cat", "dog"],
        prompts=[["a cat"], ["a dog"]],
        shots=make("shots", 1),
        val=make("val", 2),
        test=make("test", 3),
        ood={"sketch": make("sketch", 4), "neon": make("neon", 5)},
        text_features=None,
        logit_scale=None,
        record={"seed": 1},
    )


def test_every_set_is_seen_and_the_rest_is_kept(vit, tmp_path):
    task = task_of()
    seen, skipped = featurise(vit, task, tmp_path)
    assert skipped == {}
    assert (seen.name, seen.class_names, seen.prompts, seen.record) == (
        "toy",
        task.class_names,
        task.prompts,
        {"seed": 1},
    )
    assert list(seen.ood) == ["sketch", "neon"]
    for role, images in task.sets().items():
        found = seen.sets()[role]
        assert isinstance(found, FeatureSet) and found.ids == images.ids
        assert torch.equal(found.inputs, image_features(vit, images, cache_dir=False)[0].inputs)
    assert seen.text_features is not None
    assert torch.equal(seen.text_features, text_features(vit, task.prompts, cache_dir=False))
    assert seen.logit_scale == vit.logit_scale


@pytest.mark.parametrize("role", ["shots", "val"])
def test_a_bad_shot_or_validation_image_is_always_an_error(vit, role):
    with pytest.raises(DataError, match=r"image2\.jpg"):
        featurise(vit, task_of(**{role: {2}}), False, on_bad_image="skip")


def test_bad_test_images_are_skipped_by_set_when_asked(vit):
    task = task_of(test={1}, neon={0, 3})
    seen, skipped = featurise(vit, task, False, on_bad_image="skip")
    assert skipped == {"test": [task.test.ids[1]], "neon": [task.ood["neon"].ids[i] for i in (0, 3)]}
    assert (len(seen.test), len(seen.ood["neon"]), len(seen.ood["sketch"])) == (3, 2, 4)
    with pytest.raises(DataError):
        featurise(vit, task, False)


def test_transfer_sets_are_seen_with_their_own_prompts_and_skip_like_test_sets(vit):
    from dataclasses import replace

    task = task_of()
    other = Transfer(["owl", "fox"], [["an owl"], ["a fox", "one fox"]], image_set(4, "far", seed=9, bad={1}))
    task = replace(task, transfer={"far": other})
    seen, skipped = featurise(vit, task, False, on_bad_image="skip")
    far = seen.transfer["far"]
    assert skipped == {"far": [other.test.ids[1]]} and far.class_names == other.class_names
    kept = image_features(vit, other.test.subset([0, 2, 3]), cache_dir=False)[0]
    torch.testing.assert_close(far.test.inputs, kept.inputs)
    assert torch.equal(far.text_features, text_features(vit, other.prompts, cache_dir=False))
    pixels, also = pixelise(vit, task, False, on_bad_image="skip")
    assert also == skipped and pixels.transfer["far"].test.inputs.shape[0] == 3
    assert torch.equal(pixels.transfer["far"].text_features, far.text_features)
    with pytest.raises(DataError):
        featurise(vit, task, False)
    with pytest.raises(ConfigError, match="far holds features, but dataset toy images"):
        featurise(vit, replace(task, transfer={"far": far}), False)


def test_a_task_without_validation(vit):
    from dataclasses import replace

    assert featurise(vit, replace(task_of(), val=None), False)[0].val is None


def test_precomputed_features_pass_through_untouched(vit):
    seen, _ = featurise(vit, task_of(), False)
    again, skipped = featurise(None, seen)
    assert again is seen and skipped == {}
    with pytest.raises(ConfigError, match="backbone=precomputed"):
        featurise(vit, seen)


def test_images_need_a_backbone():
    with pytest.raises(ConfigError, match="holds images"):
        featurise(None, task_of())


def test_the_room_is_cheap_to_import():
    import subprocess

    code = "import sys, clipkal.backbones; print('torch' in sys.modules, 'open_clip' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
    with pytest.raises(AttributeError):
        from clipkal import backbones

        backbones.no_such_name  # noqa: B018


def test_a_progress_bar_is_shown_to_people_only(monkeypatch, capsys):
    from clipkal.backbones import progress

    with progress.progress_bar("work", 3) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with progress.progress_bar("work", 3) as advance:
        advance(1)
    assert "work" in capsys.readouterr().err
    with progress.progress_bar("work", 3, enabled=False) as advance:
        advance(1)
    assert capsys.readouterr().err == ""
    assert isinstance(Painter()(0).size, tuple)
