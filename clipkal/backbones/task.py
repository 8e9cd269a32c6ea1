"""A whole few-shot task seen through the frozen backbone."""

from dataclasses import replace

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
    precision: str | None = None,
    workers: int = 0,
    progress: bool = True,
    on_bad_image: str = "error",
) -> tuple[FewShotTask, Skipped]:
    """The same task with features in the place of images, and the class features of its prompts.

    A task that already holds features passes through untouched. `on_bad_image="skip"` applies to test sets
    only: a shot or validation image that cannot be read is always an error, because a run without it is
    another run.

    Args:
        backbone: from `load_backbone`; None for precomputed features.
        task: what `draw_task` returned.
        cache_dir, precision, workers, progress, on_bad_image: see `image_features`.

    Returns:
        the task, and the ids of skipped images by set ("test" or the OOD set's name), where there are any.

    Raises:
        ConfigError: features with a backbone, or images without one.
        DataError, BackboneError: see `image_features`.
    """
    if isinstance(task.shots, FeatureSet):
        if backbone is not None:
            raise ConfigError(f"dataset {task.name} holds precomputed features: type backbone={PRECOMPUTED}")
        return task, {}
    if backbone is None:
        raise ConfigError(
            f"dataset {task.name} holds images, which backbone={PRECOMPUTED} cannot read: type backbone=mini"
        )
    skipped: Skipped = {}

    def through(role: str, image_set: AnySet, on_bad: str) -> FeatureSet:
        assert isinstance(image_set, ImageSet)  # FewShotTask: all sets are of one kind
        features, lost = image_features(backbone, image_set, cache_dir, precision, workers, progress, on_bad)
        if lost:
            skipped[role] = lost
        return features

    text = text_features(backbone, task.prompts, cache_dir, progress)
    seen = replace(
        task,
        shots=through("shots", task.shots, "error"),
        val=None if task.val is None else through("val", task.val, "error"),
        test=through("test", task.test, on_bad_image),
        ood={name: through(name, one, on_bad_image) for name, one in task.ood.items()},
        text_features=text,
        logit_scale=backbone.logit_scale,
    )
    return seen, skipped
