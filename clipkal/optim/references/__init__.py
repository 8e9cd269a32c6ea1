"""References that one would ask for beside a Kalman filter's posterior: what others make of parameters that AdamW has learnt.

`LaplaceAdamW` puts laplace-torch's posterior around them, `Ensemble` learns them several times, `TFB` widens LoRA's factors
until the shots notice. Each learns as `AdamW` does and has its posterior once it has been told what was kept (`conclude`).
"""

from clipkal.optim.references.ensemble import Ensemble
from clipkal.optim.references.laplace import LaplaceAdamW
from clipkal.optim.references.tfb import TFB

__all__ = ["TFB", "Ensemble", "LaplaceAdamW"]
