"""Datasets of the Hugging Face Hub, or folders on disk that its library `datasets` reads (an optional extra).

`dataset.repository` is a name on the Hub; without it `dataset.path` is a folder: one of `save_to_disk`, or of
Parquet or image files. What is on the Hub is fetched only with `dataset.download=true`; else the library's
own cache must have it. Splits, and columns beside the image, choose sets as in a table (`clipkal.data.table`);
the name of the configuration is one more column, `config`. Class names come from the label's ClassLabel, or
are the labels where these are text. The Hub's test splits often have no labels (-1 or null): they are refused.
"""

from __future__ import annotations

import math
import reprlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from clipkal import files
from clipkal.data.images import open_image
from clipkal.data.rows import Rows, dataset_of, in_order
from clipkal.data.sets import Dataset
from clipkal.data.shifts import with_shifts
from clipkal.data.spec import DataSpec
from clipkal.data.table import conditions, read_columns, select
from clipkal.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("image", "label", "split", "domain")
NO_LABEL = ""


@dataclass(frozen=True)
class Piece:
    """One split of one configuration (None: it has but one)."""

    config: str | None
    split: str
    data: Any  # datasets.Dataset

    @property
    def name(self) -> str:
        """What ids of its images start with."""
        return self.split if self.config is None else f"{self.config}/{self.split}"


@dataclass(frozen=True)
class HubDecoder:
    """Row number among all pieces -> image."""

    pieces: list[Any]  # datasets.Dataset whose images stay encoded
    starts: list[int]
    column: str
    names: list[str]

    def __call__(self, i: int) -> Image.Image:
        piece = bisect_right(self.starts, i) - 1
        cell = self.pieces[piece][i - self.starts[piece]][self.column]
        name = f"{self.names[piece]}/{i - self.starts[piece]:05d}"
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise DataError(f"{name}: has no image")
        return open_image(cell["bytes"] if cell["bytes"] is not None else cell["path"], name)


def load(spec: DataSpec) -> Dataset:
    """Reads the splits that the config asks for.

    Raises:
        ConfigError: the library is not installed, or a column or split is not there.
        DataError: the dataset cannot be found or fetched, or an image has no label.
    """
    pieces = _open(spec)
    data = pieces[0].data
    columns = read_columns(spec, COLUMNS, [*data.column_names, "split", "config"])
    frame = _frame(spec, pieces, columns)
    rows = _rows(spec, pieces, frame, columns)
    parts = {name: rows.at(select(frame, where)) for name, where in conditions(spec, frame, columns).items()}
    names = _class_names(spec, pieces, columns["label"])
    keys = [str(i) for i in range(len(names))] if names else in_order(_all_keys(parts))
    _check_labels(spec, parts, keys)
    return with_shifts(dataset_of(spec, keys, parts, names), spec, names or keys)


def _all_keys(parts: Mapping[str, Rows]) -> list[str]:
    return [key for part in parts.values() for key in part.keys]


def _class_names(spec: DataSpec, pieces: list[Piece], column: str) -> list[str] | None:
    """The names of the label's ClassLabel, the same in every piece; None where it is of another kind."""
    found = {piece.name: getattr(piece.data.features.get(column), "names", None) for piece in pieces}
    names = found[pieces[0].name]
    for piece, others in found.items():
        if others != names:
            raise DataError(
                f"{spec.place}: {piece!r} has other class names, or in another order, than {pieces[0].name!r}; "
                "choose the configurations with dataset.configs"
            )
    return names


def _check_labels(spec: DataSpec, parts: Mapping[str, Rows], keys: list[str]) -> None:
    """Raises `DataError` for a row without a label, or with one that is no class."""
    known = set(keys) - {NO_LABEL}
    for name, part in parts.items():
        odd = [key for key in part.keys if key not in known]
        if NO_LABEL in odd:
            raise DataError(
                f"{spec.place}: {odd.count(NO_LABEL):,} of the {len(part.keys):,} images of {name!r} have no label "
                "(null, empty or -1); choose other rows, such as '+dataset.splits={train: train, test: validation}'"
            )
        if odd:
            raise DataError(
                f"{spec.place}: {name!r} has the label {odd[0]} but there are {len(keys)} classes"
            )


def _open(spec: DataSpec) -> list[Piece]:
    """Every split of every configuration asked for."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "source=huggingface needs one more package: pip install 'clipkal[huggingface]'"
        ) from error
    if spec.repository is None and not spec.path.is_dir():
        raise DataError(
            f"{spec.path}: no such folder; set dataset.repository to a name on the Hub, or dataset.path to a folder"
        )
    how = datasets.DownloadConfig(local_files_only=not spec.download)
    pieces: list[Piece] = []
    configs: list[str | None] = list(spec.configs) if spec.configs else [None]
    for config in configs:
        try:
            if spec.repository is not None:
                found = datasets.load_dataset(spec.repository, config, download_config=how)
            elif any((spec.path / name).is_file() for name in ("dataset_dict.json", "state.json")):
                found = datasets.load_from_disk(str(spec.path))
            else:
                found = datasets.load_dataset(str(spec.path), config)
        except Exception as error:  # the library has no common base for its many kinds
            raise _unreadable(spec, error) from error
        splits = found if isinstance(found, dict) else {"train": found}
        pieces += [Piece(config, str(split), data) for split, data in splits.items()]
    return pieces


def _unreadable(spec: DataSpec, error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if spec.repository is None:
        return DataError(f"{spec.path}: cannot be read by the library datasets ({reason})")
    way = "check the name and the network" if spec.download else "set dataset.download=true to fetch it"
    return DataError(
        f"dataset.repository={spec.repository}: cannot be loaded ({reason}); {way}, or fetch it elsewhere, "
        "save it with save_to_disk and give that folder as dataset.path"
    )


def _frame(spec: DataSpec, pieces: list[Piece], columns: dict[str, str]) -> pd.DataFrame:
    """The columns that choose sets and classes, as text, and what split and configuration each row is of."""
    import pandas as pd

    used = {columns["label"], columns["domain"], columns["split"]}
    used |= {column for where in spec.splits.values() if not isinstance(where, str) for column in where}
    frames = []
    for piece in pieces:
        kept = [column for column in piece.data.column_names if column in used]
        cells = piece.data.select_columns(kept).to_pandas()
        frame = cells.astype(str)
        if (label := columns["label"]) in cells:
            frame[label] = [_label(spec, label, cell) for cell in cells[label]]
        frame["split"], frame["config"] = piece.split, piece.config or "default"
        frames.append(frame)
    return pd.concat(frames, ignore_index=True).fillna(NO_LABEL)  # a split may lack columns


def _label(spec: DataSpec, column: str, cell: Any) -> str:
    """A label as text, NO_LABEL where it is missing; pandas makes 1 to 1.0 where others are."""
    if isinstance(cell, float | np.floating):
        cell = None if math.isnan(cell) else int(cell) if cell.is_integer() else [cell]
    if cell is not None and not isinstance(cell, str | int | np.integer | np.bool_):
        raise DataError(
            f"{spec.place}: the label column {column!r} holds {reprlib.repr(cell)}; one whole number or text an "
            "image is needed: set dataset.columns.label to another column"
        )
    text = NO_LABEL if cell is None else str(cell).strip()
    return NO_LABEL if text == "-1" else text


def _rows(spec: DataSpec, pieces: list[Piece], frame: pd.DataFrame, columns: dict[str, str]) -> Rows:
    """Every row of every piece."""
    import datasets

    try:
        encoded = [piece.data.cast_column(columns["image"], datasets.Image(decode=False)) for piece in pieces]
    except Exception as error:
        raise ConfigError(
            f"dataset.columns.image={columns['image']}: is no column of images ({error})"
        ) from error
    starts = [0]
    for piece in pieces[:-1]:
        starts.append(starts[-1] + len(piece.data))
    ids = [f"{piece.name}/{i:05d}" for piece in pieces for i in range(len(piece.data))]
    decode = HubDecoder(
        encoded, starts, columns["image"], [f"{spec.place}: {piece.name}" for piece in pieces]
    )
    # The library's fingerprint stands for a split's content.
    digest = files.digest("huggingface", spec.place, *(f"{p.name} {p.data._fingerprint}" for p in pieces))
    return Rows(ids, frame[columns["label"]].tolist(), decode, digest)
