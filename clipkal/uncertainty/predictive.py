"""What every predictive is: how class probabilities, and what is uncertain about them, are read out of a learnt model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from clipkal.data.sets import LabelledSet
from clipkal.errors import CheckpointError
from clipkal.uncertainty.chunk import Chunk, Need
from clipkal.uncertainty.prediction import Prediction

if TYPE_CHECKING:
    from clipkal.uncertainty.reader import Reader


class Accumulator(ABC):
    """The predictions of N images, of which a few are given at a time, in any order."""

    @abstractmethod
    def add(self, rows: slice, chunk: Chunk) -> None:
        """Takes all but the draws of the images at `rows`; each image is given once, before the first of its draws."""

    def add_draws(self, rows: slice, draws: Tensor) -> None:
        """Takes draws [S, B, C] of the logits of the images at `rows`; called again and again with further draws."""
        raise NotImplementedError(f"{type(self).__name__} takes no draws")

    @abstractmethod
    def prediction(self) -> Prediction:
        """Of all N images. Raises ValueError where one was not given."""


class Predictive:
    """How class probabilities are read out of a learnt model.

    A subclass has `predict`, where an image can be predicted from its chunk alone; or it has `begin`, where it is
    streamed, as draws are.

    Attributes:
        needs: what `predict` and `begin` are to be given beside the logits. It is written as a plain tuple in the
            class, because the configuration reads it without importing the class.
        samples: how many draws of the logits an image is to have, where `needs` has "draws".
        calibrated: whether `fit` chooses temperatures, so that no other is fitted after it.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    samples: int = 0
    calibrated: ClassVar[bool] = False

    def fit(self, reader: "Reader", shots: LabelledSet, validation: LabelledSet | None) -> None:
        """Learns what it has to learn from the shots and the validation images; by default nothing.

        It is never given a test image. `reader.whole` says what the model knows of these images.
        """

    def state(self) -> dict[str, Any]:
        """What `fit` has learnt, by name: tensors and plain values; a stored run predicts with it later."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over a `state()`. Raises CheckpointError for one that is not of this class."""
        if state:
            raise CheckpointError(f"{type(self).__name__} learns nothing, but was given {', '.join(state)}")

    def novelty(self, chunk: Chunk) -> Tensor | None:
        """How unlike the shots the images of a chunk are: [B] in 0…1, or None where it knows nothing of that.

        It is asked once for every image, where `needs` has "features", and the answer stands in the chunk.
        """
        return None

    def predict(self, chunk: Chunk) -> Prediction:
        """The prediction of B images, each from its own row of the chunk."""
        raise NotImplementedError(f"{type(self).__name__} has neither predict nor begin")

    def begin(self, images: int, classes: int) -> Accumulator:
        """What takes N images in over C classes; by default every chunk is predicted as it comes."""
        return OneByOne(images, self.predict)


class OneByOne(Accumulator):
    """Predicts every chunk as it comes.

    Args:
        images: N.
        predict: of a chunk.
    """

    def __init__(self, images: int, predict: Callable[[Chunk], Prediction]) -> None:
        self.images, self.predict = images, predict
        self.parts: dict[int, Prediction] = {}

    def add(self, rows: slice, chunk: Chunk) -> None:
        self.parts[rows.start or 0] = self.predict(chunk)

    def prediction(self) -> Prediction:
        found = Prediction.joined([part for _, part in sorted(self.parts.items())])
        if len(found) != self.images:
            raise ValueError(f"{len(found)} of {self.images} images were given")
        return found
