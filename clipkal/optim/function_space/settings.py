"""The options of `FunctionSpaceFilter`, checked, and the rules that follow from them."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from clipkal.optim.checks import LARGEST, SMALLEST, check_number
from clipkal.optim.function_space.evidence import rademacher
from clipkal.optim.function_space.reduced import ReducedModel

# Up to this many unknowns a Cholesky factor is cheaper than a dozen products.
SMALL = 400
# A log-determinant that is only reported is estimated from about this many random signs (a search uses all its probes).
ENTRIES = 3000


@dataclass(frozen=True)
class Settings:
    """The options of `FunctionSpaceFilter`, documented there."""

    prior: float | Literal["crossval", "evidence", "ratio"]
    scale: Literal["evidence", "frozen"]
    temperature: float | Literal["unit", "crossval"]
    solver: Literal["auto", "direct", "cg"]
    precision: Literal["auto", "float64", "float32"]
    scale_sd: float
    ratio: float
    prior_logit_sd: float
    prior_spread: float
    folds: int
    draw_logit_sd: float
    probes: int
    seed: int
    max_direct: int

    def check(self) -> None:
        """Raises ValueError naming the first option that makes no sense."""
        check_number("prior", self.prior, SMALLEST, LARGEST, ("crossval", "evidence", "ratio"))
        check_number("temperature", self.temperature, 0, LARGEST, ("unit", "crossval"))
        choices = {
            "scale": ("evidence", "frozen"),
            "solver": ("auto", "direct", "cg"),
            "precision": ("auto", "float64", "float32"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name in ("scale_sd", "ratio", "prior_logit_sd", "prior_spread", "draw_logit_sd", "probes"):
            check_number(name, getattr(self, name), SMALLEST, LARGEST)
        check_number("folds", self.folds, 2, LARGEST)

    def exact(self, size: int, searching: bool = False) -> bool:
        """Whether a problem of `size` unknowns is solved by a Cholesky factor."""
        limit = SMALL if searching else self.max_direct
        return size > 0 and (self.solver == "direct" or (self.solver == "auto" and size <= limit))

    def probe_vectors(self, model: ReducedModel) -> Tensor | None:
        """Probes [S, D] for the log-determinant, None where a Cholesky factor is to be used; fewer where D itself averages."""
        if model.size == 0 or self.exact(model.size, searching=True):
            return None
        enough = self.probes if self.prior == "evidence" else ENTRIES // model.size
        count = max(1, min(self.probes, enough))
        return rademacher(count, model.size, self.seed, model.offset)
