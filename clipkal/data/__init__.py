"""Datasets: from a place on disk (or a renderer) to a few-shot task. Nothing here knows of models.

`load_dataset(cfg, root)` gives a `Dataset`: train, val and test in distribution, and one test set per shift.
`draw_task(dataset, shots, seed, validation, protocol)` draws the shots exactly as the field does (CoOp's
protocol) and gives a `FewShotTask` whose `record` names every image drawn. Sets hold images (`ImageSet`) or
features (`FeatureSet`).
"""

from clipkal.data.loading import load_dataset
from clipkal.data.sets import Dataset, FeatureSet, ImageSet
from clipkal.data.task import FewShotTask, draw_task

__all__ = ["Dataset", "FeatureSet", "FewShotTask", "ImageSet", "draw_task", "load_dataset"]
