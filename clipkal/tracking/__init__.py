"""Tracking: one run directory that is the truth, and a mirror on a dashboard that may fail without harm.

`directory.RunDirectory` writes what a run leaves behind, `identity` says what a run is called and where it
ran, `inputs` what it was made from, `mirror.Mirror` copies it to Weights & Biases, TensorBoard or trackio (`tracker` is
what these have in common). Nothing here imports torch, W&B or pandas before it must.
"""

from clipkal.tracking.directory import RunDirectory, State
from clipkal.tracking.identity import environment, other_choices, run_id, run_path
from clipkal.tracking.mirror import Mirror

__all__ = ["Mirror", "RunDirectory", "State", "environment", "other_choices", "run_id", "run_path"]
