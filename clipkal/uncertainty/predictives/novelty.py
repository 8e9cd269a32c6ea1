"""A time update between the shots and the test image: what was learnt may no longer hold there.

A Kalman filter predicts before it updates: between two observations the state may change. So it may between the shots and a
test image, and the image itself says how likely that is (ours; a jump Markov model with two modes). Either what was learnt
still holds, or the state has been reset to its prior, and the prior of every method here is the zero-shot classifier:

    p(y | x) = (1 − v) softmax(z/T) + v softmax(z₀/T₀),    v(x) = v₀ + (1 − v₀) ρ u(x)

z, T      logits of the learnt model, at a temperature fitted on the validation images (1 without any)
z₀, T₀    zero-shot logits, at a temperature fitted on shots and validation images, none of which zero-shot has seen
u(x)      the probability that x comes from elsewhere than the shots (novelty.py); an image that is novel is not always wrong:
ρ         the probability that what was learnt does not hold there
v₀        the probability that it does not hold in the shots' own world: the share of held-out images that zero-shot explains
          better, with a Beta prior

In closed form and for any method, since nothing but logits and features is asked for. The parts of the uncertainty are those
of a draw of the hidden state: aleatoric (1 − v) H[softmax(z/T)] + v H[softmax(z₀/T₀)], and epistemic what is left of the total.

δ, π, ρ and the priors were chosen on simulated shift, from training and validation images of many sets, before any test set
was looked at (docs/study).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clipkal.data.sets import LabelledSet
from clipkal.errors import CheckpointError
from clipkal.settings import Fraction, Positive, Share, checked
from clipkal.uncertainty.chunk import Chunk
from clipkal.uncertainty.novelty import World
from clipkal.uncertainty.prediction import Prediction, entropy_of, log_softmax
from clipkal.uncertainty.predictive import Predictive
from clipkal.uncertainty.reader import Reader
from clipkal.uncertainty.temperature import fit_temperature

LEARNT_SD, ZEROSHOT_SD = 0.3, 0.5
"""Standard deviations of log T and log T₀ around 0 before an image is seen."""
DOUBT = (0.1, 1.9)
"""The Beta distribution of v₀ before an image is seen: mean 0.05, worth two images."""
GRID = 400


class Novelty(Predictive):
    """A mixture of the learnt model and of zero-shot, which has the more weight the less an image is like the shots.

    Args:
        shift: π, the share of images that you expect from elsewhere than the shots; 0: none.
        failure: ρ, the probability that what was learnt does not hold for an image from elsewhere.
        separation: δ, by how many standard deviations such images lie further from the shots.
    """

    needs = ("zeroshot", "features")
    calibrated = True

    @checked
    def __init__(self, shift: Fraction = 0.1, failure: Share = 0.5, separation: Positive = 2.0):
        self.shift, self.failure, self.separation = shift, failure, separation
        self.learnt, self.zeroshot, self.doubt = 1.0, 1.0, DOUBT[0] / sum(DOUBT)
        self.world: World | None = None

    def fit(self, reader: Reader, shots: LabelledSet, validation: LabelledSet | None) -> None:
        """Learns the two temperatures, the doubt v₀ and the distances between the shots.

        Raises ConfigError for a model that knows nothing of zero-shot.
        """
        seen = reader.whole(shots.inputs, len(shots.labels), self.needs, "shots")
        labels, held = shots.labels.cpu(), None
        zeroshot, known = _part(seen.zeroshot), labels
        if validation is not None and len(validation.labels):
            held = reader.whole(validation.inputs, len(validation.labels), self.needs, "validation")
            zeroshot = torch.cat((zeroshot, _part(held.zeroshot)))
            known = torch.cat((labels, validation.labels.cpu()))
        self.zeroshot = fit_temperature(zeroshot, known, ZEROSHOT_SD)
        if held is not None and validation is not None:
            self.learnt = fit_temperature(held.logits, validation.labels.cpu(), LEARNT_SD)
            self.doubt = self._doubt(held, validation.labels.cpu())
        if len(known) > 1:
            others = None if held is None else held.features
            self.world = World.of(_part(seen.features), labels, others)

    def _doubt(self, held: Chunk, labels: Tensor) -> float:
        """The posterior mean of v₀ given images that were not learnt from, on a grid."""
        learnt, zeroshot = (part.gather(1, labels[:, None])[:, 0] for part in self._parts(held))
        share = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
        a, b = DOUBT
        score = (a - 1) * share.log() + (b - 1) * (-share).log1p()
        score += torch.logaddexp((-share).log1p()[:, None] + learnt, share.log()[:, None] + zeroshot).sum(1)
        return float((score.softmax(0) * share).sum())

    def _parts(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Logarithms of the two distributions, [B, C] each."""
        return log_softmax(chunk.logits / self.learnt, 2), log_softmax(
            _part(chunk.zeroshot) / self.zeroshot, 2
        )

    def novelty(self, chunk: Chunk) -> Tensor:
        """u of B images [B]; 0 where nothing was fitted."""
        if self.world is None or self.shift == 0:
            return torch.zeros(len(chunk), dtype=torch.float64)
        distance = chunk.nearest
        if distance is None:
            distance = self.world.shots.distance(_part(chunk.features))
        return self.world.novelty(distance, self.shift, self.separation)

    def predict(self, chunk: Chunk) -> Prediction:
        u = self.novelty(chunk) if chunk.novelty is None else chunk.novelty
        v = self.doubt + (1 - self.doubt) * self.failure * u
        learnt, zeroshot = self._parts(chunk)
        log_probs = torch.logaddexp((-v).log1p()[:, None] + learnt, v.log()[:, None] + zeroshot)
        probs = log_probs.exp()
        total = entropy_of(probs, log_probs)
        aleatoric = (1 - v) * entropy_of(learnt.exp(), learnt) + v * entropy_of(zeroshot.exp(), zeroshot)
        aleatoric = torch.minimum(aleatoric, total)  # rounding only
        return Prediction(probs, total, aleatoric, total - aleatoric, log_probs, novelty=u)

    def state(self) -> dict[str, Any]:
        """The two temperatures, the doubt, and the shots' features with their distances."""
        found: dict[str, Any] = {"learnt": self.learnt, "zeroshot": self.zeroshot, "doubt": self.doubt}
        return found | ({} if self.world is None else self.world.state())

    def load_state(self, state: Mapping[str, Any]) -> None:
        try:
            self.learnt, self.zeroshot = float(state["learnt"]), float(state["zeroshot"])
            self.doubt = float(state["doubt"])
            self.world = None
            if "features" in state:
                self.world = World(state["features"], float(state["mean"]), float(state["spread"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"this is no state of predictive=novelty: {error!r} is wrong or missing"
            ) from error


def _part(part: Tensor | None) -> Tensor:
    assert part is not None, "the reader gives what the predictive needs"
    return part
