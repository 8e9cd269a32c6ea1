"""Tracking: one run directory that is the truth, and a W&B mirror that may fail without harm.

`directory.RunDirectory` writes what a run leaves behind, `identity` says what a run is called and where it
ran, `inputs` what it was made from, `wandb_mirror.WandbMirror` copies it to Weights & Biases. Nothing here
imports torch, W&B or pandas before it must.
"""

from clipkal.tracking.directory import RunDirectory, State
from clipkal.tracking.identity import environment, other_choices, run_id, run_path
from clipkal.tracking.wandb_mirror import WandbMirror

__all__ = ["RunDirectory", "State", "WandbMirror", "environment", "other_choices", "run_id", "run_path"]
