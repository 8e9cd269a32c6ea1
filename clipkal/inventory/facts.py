"""How many classes and images each public dataset has, to compare with what is on disk.

Counts of CoOp's datasets are those of its split files and of its paper; of the domain sets those of the
public copies that DomainBed uses; of iWildCam and FMoW those of the WILDS paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Facts:
    """What a whole copy holds.

    Attributes:
        classes: the number of classes.
        counts: images by role; roles joined by "+" are counted together, where the division between them is
            ours.
        domains: images by domain (all its splits) or by OOD set.
    """

    classes: int
    counts: Mapping[str, int] = field(default_factory=dict)
    domains: Mapping[str, int] = field(default_factory=dict)


def _coop(classes: int, train: int, val: int, test: int) -> Facts:
    return Facts(classes, {"train": train, "val": val, "test": test})


_IMAGENET = {"train+val": 1_281_167, "test": 50_000}
_IMAGENET_SHIFTS = {
    "imagenet_v2": 10_000,
    "imagenet_sketch": 50_889,
    "imagenet_a": 7_500,
    "imagenet_r": 30_000,
    "objectnet": 18_574,  # in the 113 classes that ImageNet has too
}

FACTS: dict[str, Facts] = {
    "rendered": _coop(24, 768, 192, 600),
    "digits": _coop(10, 896, 178, 723),
    "imagenet": Facts(1000, _IMAGENET, _IMAGENET_SHIFTS),
    "imagenet_shifts": Facts(1000, _IMAGENET, _IMAGENET_SHIFTS),
    "caltech101": _coop(100, 4_128, 1_649, 2_465),
    "oxford_pets": _coop(37, 2_944, 736, 3_669),
    "stanford_cars": _coop(196, 6_509, 1_635, 8_041),
    "flowers102": _coop(102, 4_093, 1_633, 2_463),
    "food101": _coop(101, 50_500, 20_200, 30_300),
    "fgvc_aircraft": _coop(100, 3_334, 3_333, 3_333),
    "sun397": _coop(397, 15_880, 3_970, 19_850),
    "dtd": _coop(47, 2_820, 1_128, 1_692),
    "eurosat": _coop(10, 13_500, 5_400, 8_100),
    "ucf101": _coop(101, 7_639, 1_898, 3_783),
    "cifar10": Facts(10, {"train+val": 50_000, "test": 10_000}, {"cifar10_1": 2_000}),
    "cifar100": Facts(100, {"train+val": 50_000, "test": 10_000}),
    "iwildcam": Facts(
        182, {"train": 129_809, "val": 7_314, "test": 8_154}, {"ood_val": 14_961, "ood_test": 42_791}
    ),
    "fmow": Facts(
        62, {"train": 76_863, "val": 11_483, "test": 11_327}, {"ood_val": 19_915, "ood_test": 22_108}
    ),
    "pacs": Facts(7, domains={"photo": 1_670, "art_painting": 2_048, "cartoon": 2_344, "sketch": 3_929}),
    "office_home": Facts(65, domains={"Real World": 4_357, "Art": 2_427, "Clipart": 4_365, "Product": 4_439}),
    "office_caltech10": Facts(10, domains={"amazon": 958, "caltech": 1_123, "dslr": 157, "webcam": 295}),
    "vlcs": Facts(5, domains={"Caltech101": 1_415, "LabelMe": 2_656, "SUN09": 3_282, "VOC2007": 3_376}),
    "domainnet": Facts(
        345,
        domains={
            "real": 172_947,
            "clipart": 48_129,
            "infograph": 51_605,
            "painting": 72_266,
            "quickdraw": 172_500,
            "sketch": 69_128,
        },
    ),
}
"""By the name of the file in `conf/dataset/`."""
