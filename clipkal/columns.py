"""Columns of an Arrow table, made from memory as it lies: `pyarrow.array` would import pandas, which takes a second."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from torch import Tensor


def numbers(values: Tensor) -> pa.Array:
    """A column of N numbers from a tensor [N] on the CPU, or of N lists from one [N, C]."""
    array = np.ascontiguousarray(values.numpy())
    if array.ndim == 2:
        ends = np.arange(0, array.size + 1, array.shape[1], dtype=np.int32)
        return pa.ListArray.from_arrays(_flat(ends), _flat(array.reshape(-1)))
    return _flat(array)


def texts(values: Sequence[str]) -> pa.Array:
    """A column of strings."""
    data = [value.encode("utf-8", "backslashreplace") for value in values]
    ends = np.cumsum([0, *map(len, data)], dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(data), pa.py_buffer(ends), pa.py_buffer(b"".join(data)))


def _flat(array: np.ndarray) -> pa.Array:
    return pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), len(array), [None, pa.py_buffer(array)])
