"""Where the points of a learning curve stand on a dashboard."""

from clipkal.recording.curves import Curves
from clipkal.training import Training
from clipkal.training.plan import Trial


class Listening:
    """A mirror that keeps what it is told."""

    mode = "offline"

    def __init__(self) -> None:
        self.heard: list[tuple[dict[str, float], float, int]] = []

    def log(self, values: dict[str, float], **axes: float) -> None:
        self.heard.append((values, axes["epoch"], axes["images_seen"]))


def test_points_within_a_pass_stand_at_the_images_seen() -> None:
    mirror = Listening()
    curves = Curves(mirror, points=0)
    curves.images, curves.rates = 30, (None,)
    curves.epoch(0, 1 + 7 / 30, {"val_nll": 0.5, "val_accuracy": 0.75, "seconds": 2.0})
    named = {"val/nll": 0.5, "val/accuracy": 0.75, "train/step_seconds": 2.0}
    assert mirror.heard == [(named, 1 + 7 / 30, 37)]


def test_so_do_those_of_the_learning_rate_that_was_kept() -> None:
    mirror = Listening()
    curves = Curves(mirror, points=0)
    curves.images, curves.rates = 30, (0.1, 1.0)
    curves.epoch(1, 0.5, {"val_nll": 0.5})
    kept = Trial(1.0, 1, 0.4, [{"epoch": 0.5, "val_nll": 0.5}, {"epoch": 1.0, "val_nll": 0.4}])
    curves.kept(Training([kept], kept, optimizer=None, seconds=1.0))
    assert mirror.heard == [
        ({"trials/lr-1/val_nll": 0.5}, 0.5, 15),
        ({"val/nll": 0.5}, 0.5, 15),
        ({"val/nll": 0.4}, 1.0, 30),
    ]
