"""predictions.parquet: one row per set, predictive and image.

The columns are made from memory as it lies: `pyarrow.array` would import pandas, which takes a second.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from clipkal.evaluation import Evaluation, SetEvaluation


def table(evaluation: Evaluation, probabilities: bool = True) -> pa.Table:
    """The predictions of every set and predictive, one row an image.

    Columns:
        set, role, id, label, predictive, predicted, confidence. `label` and `predicted` count among all classes (of a
            transfer set: its own).
        probs: float32 list over the set's label space (`label_space` in results.json), left out with
            probabilities=False: 1000 classes take 4 kB an image and predictive.
        entropy, aleatoric, epistemic: the total uncertainty of the label and its two parts, in nats.
        novelty: how unlike the shots the image is, 0…1; null where the predictive knows nothing of that.
        energy, nearest_shot, mahalanobis, relative_mahalanobis: scores of the image, higher = less like the shots, the
            same for every predictive; null where a set lacks them.
    """
    parts = [
        rows(name, one, predictive, probabilities)
        for name, one in evaluation.sets.items()
        for predictive in one.predictions
    ]
    return pa.concat_tables(parts, promote_options="default")


def rows(name: str, one: SetEvaluation, predictive: str, probabilities: bool = True) -> pa.Table:
    """The rows of `table` for one set, called `name`, and one predictive."""
    found, space, n = one.predictions[predictive], torch.tensor(one.classes), len(one.ids)
    columns = {
        "set": _text(name, n),
        "role": _text(one.role, n),
        "id": _texts(one.ids),
        "label": _numbers(one.labels),
        "predictive": _text(predictive, n),
        "predicted": _numbers(space[found.predicted]),
        "confidence": _numbers(found.confidence),
    }
    columns |= {"probs": _numbers(found.probs.float())} if probabilities else {}
    columns |= {part: _numbers(getattr(found, part)) for part in ("entropy", "aleatoric", "epistemic")}
    columns["novelty"] = pa.nulls(n, pa.float64()) if found.novelty is None else _numbers(found.novelty)
    columns |= {score: _numbers(values) for score, values in one.image_scores.items()}
    return pa.table(columns)


def _numbers(values: Tensor) -> pa.Array:
    """A column of N numbers from a tensor [N] on the CPU, or of N lists from one [N, C]."""
    array = np.ascontiguousarray(values.numpy())
    if array.ndim == 2:
        ends = np.arange(0, array.size + 1, array.shape[1], dtype=np.int32)
        return pa.ListArray.from_arrays(_flat(ends), _flat(array.reshape(-1)))
    return _flat(array)


def _texts(values: Sequence[str]) -> pa.Array:
    """A column of N strings; a lone surrogate, as in a file name that is no text, is written \\udcXX."""
    data = [value.encode("utf-8", "backslashreplace") for value in values]
    return _strings(np.fromiter(map(len, data), np.int64, len(data)), b"".join(data))


def _text(value: str, n: int) -> pa.Array:
    """A column that has one string n times."""
    data = value.encode("utf-8", "backslashreplace")
    return _strings(np.full(n, len(data)), data * n)


def _strings(lengths: np.ndarray, data: bytes) -> pa.Array:
    ends = np.concatenate([[0], lengths]).cumsum()
    return pa.LargeStringArray.from_buffers(len(lengths), pa.py_buffer(ends), pa.py_buffer(data))


def _flat(array: np.ndarray) -> pa.Array:
    return pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), len(array), [None, pa.py_buffer(array)])
