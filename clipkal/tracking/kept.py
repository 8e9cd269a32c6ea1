"""What a run leaves on disk, by the word of `keep`: the figures always, the model and the predictions where they are wanted."""

from collections.abc import Collection

MODEL = (
    "classes.safetensors", "adapter.safetensors", "posterior.safetensors", "predictive.safetensors",
)  # fmt: skip
"""What `clipkal.load_run` needs to predict."""
PREDICTIONS = "predictions.parquet"
"""One row an image and predictive, for thresholds, risk–coverage and whatever else looks at single images."""
LEFT_OUT: dict[str, Collection[str]] = {
    "all": (), "predictions": MODEL, "model": (PREDICTIONS,), "results": (*MODEL, PREDICTIONS),
}  # fmt: skip
ALWAYS = ("adapter.safetensors", PREDICTIONS)
"""Those of them that every run has."""


def keeps(keep: str, name: str) -> bool:
    """Whether a run with this word of `keep` stores the file."""
    return name not in LEFT_OUT.get(keep, ())


def lacking(keep: str, there: Collection[str]) -> list[str]:
    """What `keep` asks for and the files of a finished run, `there`, have not."""
    return [name for name in ALWAYS if keeps(keep, name) and name not in there]
