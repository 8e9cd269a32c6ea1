"""What a run says about images: probabilities, and how sure it is and why, image by image."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("entropy", "aleatoric", "epistemic")


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of N images among C classes; entropies in nats.

    Attributes:
        ids: N names of images.
        class_names: C names.
        predictive: how the probabilities were read out, such as "sampled".
        probs: float64 [N, C], rows sum to 1.
        entropy: total uncertainty of the label [N], in [0, log C].
        aleatoric: what more shots would not remove [N].
        epistemic: what they would: entropy − aleatoric [N]; 0 for a plug-in.
        novelty: how unlike the shots an image is [N], in [0, 1]; None where the predictive does not say.
        accepted: bool [N]; False where the run abstains (`Run.threshold`). None: nothing was to be rejected.
        sets: bool [N, C]; for each image the classes that cannot be ruled out (`Run.set_threshold`). None: not asked for.
        skipped: (name, reason) of images that could not be read.
    """

    ids: list[str]
    class_names: list[str]
    predictive: str
    probs: Tensor
    entropy: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    novelty: Tensor | None = None
    accepted: Tensor | None = None
    sets: Tensor | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each image, int64 [N]; the first where several tie."""
        return torch.from_numpy(self.probs.numpy().argmax(1))

    @property
    def confidence(self) -> Tensor:
        """Its probability [N]."""
        return self.probs.amax(1)

    @property
    def classes(self) -> list[str]:
        """Its name, for each image."""
        return [self.class_names[i] for i in self.predicted.tolist()]

    def rejecting(self, threshold: float | None) -> "Predictions":
        """The same, abstaining where the entropy is above the threshold."""
        return self if threshold is None else replace(self, accepted=self.entropy <= threshold)

    def with_sets(self, threshold: float | None) -> "Predictions":
        """The same with the sets of classes whose score 1 − p is at most the threshold."""
        return self if threshold is None else replace(self, sets=1 - self.probs <= threshold)

    def columns(self, top: int = 1) -> dict[str, list[Any]]:
        """Plain columns, one row an image.

        image; class and confidence of the `top` most probable classes; uncertainties; `set` and `accepted` where asked for.
        """
        found: dict[str, list[Any]] = {"image": list(self.ids)}
        values, places = self.probs.topk(min(top, self.probs.shape[1]), dim=1)
        places[:, 0] = self.predicted  # of several that tie topk may give another
        for rank in range(places.shape[1]):
            ending = "" if rank == 0 else f"_{rank + 1}"
            found[f"class{ending}"] = [self.class_names[i] for i in places[:, rank].tolist()]
            found[f"confidence{ending}"] = values[:, rank].tolist()
        found |= {part: getattr(self, part).tolist() for part in PARTS}
        found |= {} if self.novelty is None else {"novelty": self.novelty.tolist()}
        if self.sets is not None:
            names = self.class_names
            found["set"] = [[names[i] for i in row.nonzero().flatten().tolist()] for row in self.sets]
        return found | ({} if self.accepted is None else {"accepted": self.accepted.tolist()})

    def to_pandas(self, top: int = 1) -> "pd.DataFrame":
        """`columns` as a frame."""
        import pandas as pd

        return pd.DataFrame(self.columns(top))


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of one run, one after the other."""
    first = parts[0]

    def cat(name: str) -> Tensor | None:
        found = [getattr(part, name) for part in parts]
        return None if any(one is None for one in found) else torch.cat(found)

    tensors: dict[str, Any] = {name: cat(name) for name in ("probs", *PARTS, "novelty", "accepted", "sets")}
    ids = [one for part in parts for one in part.ids]
    return replace(first, ids=ids, skipped=[one for part in parts for one in part.skipped], **tensors)
