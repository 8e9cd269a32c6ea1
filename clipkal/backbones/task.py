"""A whole few-shot task seen through the frozen backbone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from clipkal.backbones.cache import CacheDir
from clipkal.backbones.features import image_features
from clipkal.backbones.openclip import PRECOMPUTED, Backbone
from clipkal.backbones.prompts import text_features
from clipkal.data.sets import AnySet, FeatureSet, ImageSet
from clipkal.data.task import FewShotTask
from clipkal.errors import ConfigError

Skipped = dict[str, list[str]]


def featurise(
    backbone: Backbone | None,
    task: FewShotTask,
    cache_dir: CacheDir = None,
    workers: int = 0,
    progress: bool = True,
    on_bad_image: str = "error",
) -> tuple[FewShotTask, Skipped]:
    """The same task with features in the place of images, and the class features of its prompts.

    A task that already holds features passes through untouched. `on_bad_image="skip"` applies to test sets
    only (transfer sets included): a shot or validation image that cannot be read is always an error, because
    a run without it is another run.

    Args:
        backbone: from `load_backbone`; None for precomputed features.
        task: what `draw_task` returned.
        cache_dir, workers, progress, on_bad_image: see `image_features`.

    Returns:
        the task, and the ids of skipped images by set ("test" or the set's name), where there are any.

    Raises:
        ConfigError: features with a backbone, or images without one; a transfer set of the other kind, or of
            features of another width.
        DataError, BackboneError: see `image_features`.
    """
    check_transfer(task)
    if isinstance(task.shots, FeatureSet):
        if backbone is not None:
            raise ConfigError(f"dataset {task.name} holds precomputed features: type backbone={PRECOMPUTED}")
        return task, {}
    if backbone is None:
        raise ConfigError(
            f"dataset {task.name} holds images, which backbone={PRECOMPUTED} cannot read: type backbone=mini"
        )
    through = lambda one, on_bad: image_features(backbone, one, cache_dir, workers, progress, on_bad)
    text = lambda prompts: text_features(backbone, prompts, cache_dir, progress)
    return seen_through(task, through, text, backbone.logit_scale, on_bad_image)


def seen_through(
    task: FewShotTask,
    images: Callable[[ImageSet, str], tuple[Any, list[str]]],
    text: Callable[[list[list[str]]], Tensor],
    logit_scale: float,
    on_bad_image: str,
) -> tuple[FewShotTask, Skipped]:
    """The task with every set and the prompts of every group of classes exchanged, and what was skipped by set.

    Args:
        images: (set, what to do with a bad image) -> what takes the set's place, ids of images left out.
        text: prompts of C classes -> float32 [C, d].
        logit_scale, on_bad_image: see `featurise`.
    """
    skipped: Skipped = {}

    def through(role: str, image_set: AnySet, on_bad: str) -> Any:
        assert isinstance(image_set, ImageSet)  # FewShotTask: all sets are of one kind
        seen, lost = images(image_set, on_bad)
        if lost:
            skipped[role] = lost
        return seen

    transfer = {
        name: replace(one, test=through(name, one.test, on_bad_image), text_features=text(one.prompts))
        for name, one in task.transfer.items()
    }
    seen = replace(
        task,
        shots=through("shots", task.shots, "error"),
        val=None if task.val is None else through("val", task.val, "error"),
        test=through("test", task.test, on_bad_image),
        ood={name: through(name, one, on_bad_image) for name, one in task.ood.items()},
        transfer=transfer,
        text_features=text(task.prompts),
        logit_scale=logit_scale,
    )
    return seen, skipped


def check_transfer(task: FewShotTask) -> None:
    """Raises ConfigError for a transfer set that the adapter of this task could not be shown."""
    for name, one in task.transfer.items():
        if type(one.test) is not type(task.shots):
            kinds = ("features", "images") if isinstance(one.test, FeatureSet) else ("images", "features")
            raise ConfigError(
                f"fewshot.transfer: {name} holds {kinds[0]}, but dataset {task.name} {kinds[1]}; take two of a kind"
            )
        if isinstance(one.test, FeatureSet) and isinstance(task.shots, FeatureSet):
            width, own = one.test.inputs.shape[1], task.shots.inputs.shape[1]
            if width != own:
                raise ConfigError(
                    f"fewshot.transfer: the features of {name} have width {width}, those of {task.name} {own}; "
                    "take features of the same backbone"
                )
