"""`load_run(path)`: a finished run that predicts as it did when it was evaluated."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from clipkal import files
from clipkal.backbones.features import encode, reduced_precision
from clipkal.backbones.openclip import Backbone
from clipkal.backbones.progress import progress_bar
from clipkal.errors import CheckpointError, ClipkalError, ConfigError, DataError
from clipkal.inference import loading
from clipkal.inference.batches import portions, readable
from clipkal.inference.images import gather
from clipkal.inference.record import ANEW, PREDICTIONS, Record, read_record
from clipkal.inference.results import Predictions, joined
from clipkal.methods import learns_from_images
from clipkal.tracking.reported import SCALED
from clipkal.uncertainty import Reader
from clipkal.uncertainty.chunk import View
from clipkal.uncertainty.reader import MEMORY_BUDGET
from clipkal.uncertainty.streaming import Images as Inputs
from clipkal.uncertainty.streaming import predict


def load_run(
    path: str | Path,
    device: str | None = None,
    weights: str | Path | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
) -> "Run":
    """A finished run, to predict with.

    Args:
        path: the run directory, or the folder of its W&B artifact.
        device: auto, cpu, cuda, …; None: the run's own.
        weights: where the backbone's weights are now, a file or a folder, if not where the run had them.
        precision: fp32, fp16 or bf16 in the image tower; None: the run's own.
        batch_size: images a forward pass; None: the run's own.

    Raises:
        CheckpointError: see `read_record`.
        BackboneError: the adapter works inside a tower whose weights are gone or are others; where it works on features
            that is said when the first image comes.
    """
    record = read_record(path)
    cfg = record.cfg.copy()
    given = {"precision": precision, "batch_size": batch_size}
    cfg.backbone = OmegaConf.merge(cfg.backbone, {k: v for k, v in given.items() if v is not None})
    cfg.device = device or cfg.device
    if weights is not None:
        loading.move_weights(cfg, files.expanded(weights))
    return Run(record, cfg)


class Run:
    """A finished run. `load_run` makes one.

    Attributes:
        record: what its files say: `record.results` is results.json.
        cfg: its configuration, with what `load_run` changed.
        class_names: C names.
        predictives: how it can read out probabilities, as in its results; `predictive` is the one it reports.
        adapter: what was learnt, in evaluation mode.
        posterior: how sure the optimiser is of it; None where there is none.
        reader: of the adapter and its posterior; `readouts`: name -> how probabilities are made of what it reads.
    """

    def __init__(self, record: Record, cfg: DictConfig):
        self.record, self.cfg = record, cfg
        self.class_names = record.class_names
        self.predictives, self.predictive = record.predictives, record.reported
        self._classes = loading.classes(record)
        backbone = self.backbone if self.on_images else None
        self.adapter = loading.adapter(record, cfg, self._classes, backbone)
        self.posterior = loading.posterior(record, cfg, self.adapter)
        self.reader = Reader(self.adapter, self.posterior, cfg.seed, self.adapter.batch_size)
        self.readouts = loading.readouts(record, cfg)

    def __repr__(self) -> str:
        run = self.record.results["run"]
        words = ", ".join(f"{key}={run[key]}" for key in ("dataset", "backbone", "method", "shots", "seed"))
        return f"Run({str(self.record.path)!r}: {words}, {len(self.class_names)} classes)"

    # -- what the run learnt --

    @cached_property
    def on_images(self) -> bool:
        """Whether the adapter works inside the backbone's towers, so that its inputs are images and not features."""
        return learns_from_images(self.cfg)

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen CLIP, built when it is first needed; raises as `loading.known_backbone`."""
        return loading.known_backbone(self.record, self.cfg, self._classes)

    @cached_property
    def _tower(self) -> torch.nn.Module:
        return reduced_precision(self.backbone.model, self.backbone.precision)

    @property
    def prompts(self) -> list[list[str]]:
        """For each class the sentences of its ensemble; none for runs that did not keep them."""
        return self._classes.prompts

    @property
    def weights_digest(self) -> str | None:
        """sha256 of the backbone's weights, where the run kept it."""
        return self._classes.backbone.get("weights")

    @property
    def logit_scale(self) -> float:
        """The factor on the cosine."""
        log_scale: Any = getattr(self.adapter, "log_scale", None)
        return float(self.adapter.scale if log_scale is None else log_scale.exp())  # type: ignore[arg-type]

    @property
    def width(self) -> int:
        """d, of the features that it learnt from."""
        text: Any = self.adapter.text
        return int(text.shape[1])

    # -- predicting --

    def predict(
        self,
        images: Any,
        predictive: str | None = None,
        *,
        on_bad_image: str = "error",
        reject: float | None = None,
        sets: bool = False,
        workers: int = 0,
        progress: bool = False,
    ) -> Predictions:
        """What the run says about images; 8 · N · C bytes. `stream` says it in portions.

        Args:
            images: one or any number: paths, folders, patterns, PIL images, arrays, tensors (`clipkal.inference.images`).
            predictive: one of `predictives`; None: `predictive`.
            on_bad_image: "error", or "skip" for images that cannot be read, which are listed in `skipped`.
            reject: the share of images like those of the test set on which to abstain; see `threshold`.
            sets: whether to give conformal sets of classes; see `set_threshold`.
            workers: threads that decode; 0 = as many as torch has.
            progress: a bar on terminals for work of more than two seconds.

        Raises:
            DataError: an image cannot be read and on_bad_image is "error", or none can; or what was given is no image.
            ConfigError: the run has no such predictive, or `reject` is no share.
        """
        how: dict[str, Any] = {"on_bad_image": on_bad_image, "reject": reject, "sets": sets}
        return joined(list(self.stream(images, predictive, workers=workers, progress=progress, **how)))

    def stream(
        self,
        images: Any,
        predictive: str | None = None,
        *,
        on_bad_image: str = "error",
        reject: float | None = None,
        sets: bool = False,
        workers: int = 0,
        progress: bool = False,
    ) -> Iterator[Predictions]:
        """`predict` in portions of some hundred images, so that memory is flat however many there are."""
        name = self._known(predictive)
        if on_bad_image not in ("error", "skip"):
            raise ConfigError(f"on_bad_image={on_bad_image}: choose error or skip")
        threshold = None if reject is None else self.threshold(reject, name)
        limit = self.set_threshold(name) if sets else None
        found = gather(images)
        skipped: list[tuple[str, str]] = []
        any_read = False
        with progress_bar("predicting", len(found), progress) as advance:
            strict = on_bad_image == "error"
            read = readable(self.backbone, found, workers, strict, skipped, advance)
            seen = ((self.inputs(pixels), ids) for pixels, ids in read)
            for inputs, ids in portions(seen, self._portion(name)):
                any_read = True
                told, skipped[:] = list(skipped), []
                yield self._predictions(inputs, ids, name, told).rejecting(threshold).with_sets(limit)
        if not any_read:
            raise DataError(f"not one of the {len(found)} images can be read, the first: {skipped[0][1]}")
        if skipped:
            yield self._none(name, list(skipped)).rejecting(threshold).with_sets(limit)

    def predict_features(self, features: Tensor, predictive: str | None = None) -> Predictions:
        """The same for features [N, d] of the run's backbone, which are made unit rows; not for adapters inside the towers."""
        name = self._known(predictive)
        if self.on_images:
            raise ConfigError(f"adapter={self.cfg.adapter.name} works inside the tower: give images")
        rows, width = torch.as_tensor(features, dtype=torch.float32), self.width
        if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
            raise DataError(f"features are {list(rows.shape)}, expected [N, {width}]")
        if not bool(rows.isfinite().all()):
            raise DataError("features are not finite")
        rows = torch.nn.functional.normalize(rows, dim=-1)
        ids = [f"feature {i}" for i in range(len(rows))]
        chunks = portions([(rows, ids)], self._portion(name))
        return joined([self._predictions(chunk, some, name, []) for chunk, some in chunks])

    def threshold(self, reject: float, predictive: str | None = None) -> float:
        """The entropy above which the run abstains: on the share `reject` of the images of its own test set.

        Raises ConfigError where `reject` is not in [0, 1), CheckpointError where predictions.parquet is not there.
        """
        if not (isinstance(reject, int | float) and 0 <= reject < 1):
            raise ConfigError(f"reject={reject}: give the share of images to abstain on, from 0 to below 1")
        from pyarrow import parquet

        name = self._known(predictive)
        where = [("set", "==", "test"), ("predictive", "==", name)]
        table = parquet.read_table(self.record.whole(PREDICTIONS), columns=["entropy"], filters=where)
        entropies = torch.tensor(table["entropy"].to_pylist(), dtype=torch.float64).sort().values
        return float(entropies[max(0, round((1 - reject) * len(entropies)) - 1)])

    def set_threshold(self, predictive: str | None = None) -> float:
        """The largest 1 − p of a class in an image's conformal set; infinite where the run had too few images to rule any out.

        For images that are exchangeable with those that the run was calibrated on, the set holds the label with the
        probability 1 − alpha that stands in its results. Raises ConfigError where the run has no sets for the predictive.
        """
        known = self.record.results["evaluation"].get("conformal") or {}
        name = self._known(predictive)
        if known.get("predictive") != name or "thresholds" not in known:
            has = f"for {known['predictive']} only" if "thresholds" in known else "none"
            raise ConfigError(f"{self.record.path}: conformal sets for predictive={name}: the run has {has}")
        limit = known["thresholds"]["lac"]
        return float("inf") if limit is None else float(limit)

    def _known(self, predictive: str | None) -> str:
        name = predictive or self.predictive
        if name not in self.predictives:
            raise ConfigError(
                f"predictive={name}: the run {self.record.path} has {', '.join(self.predictives)}"
            )
        needs = self.readouts[name.removesuffix(SCALED)].needs
        if self.posterior is None and {"draws", "covariance"} & set(needs):
            raise CheckpointError(
                f"{self.record.path}: predictive={name} needs the posterior whole, as clipkal writes it today; {ANEW}, or "
                "predict with predictive=plugin"
            )
        return name

    def _portion(self, name: str) -> int:
        """How many images are predicted at a time: as many as in the run, where draws go by the batch."""
        most, readout = self.adapter.batch_size, self.readouts[name.removesuffix(SCALED)]
        if "draws" not in readout.needs or self.posterior is None or self.posterior.joint_over_images():
            return most
        return min(most, max(1, MEMORY_BUDGET // (32 * readout.samples * len(self.class_names))))

    def inputs(self, pixels: Tensor) -> Tensor:
        """What the adapter takes, of preprocessed images [B, 3, H, W]: the images themselves, or their features."""
        return pixels if self.on_images else self.features(pixels)

    def features(self, pixels: Tensor) -> Tensor:
        """Unit rows [B, d], float32 on the CPU, of preprocessed images [B, 3, H, W]; ClipkalError where they are not finite."""
        features = encode(self._tower, pixels.to(self.backbone.device, non_blocking=True)).cpu()
        if not bool(features.isfinite().all()):
            raise ClipkalError(
                f"{self.cfg.backbone.name} gives features that are not finite in {self.backbone.precision}; predict with "
                "precision fp32"
            )
        return features

    def _predictions(
        self, inputs: Tensor, ids: list[str], name: str, skipped: list[tuple[str, str]]
    ) -> Predictions:
        view = View(name.removesuffix(SCALED), self._temperature(name))
        sets = {"the images": Inputs(inputs, len(inputs), [view])}
        told = predict(self.reader, self.readouts, sets)["the images"][view]
        parts = {
            part: getattr(told, part) for part in ("probs", "entropy", "aleatoric", "epistemic", "novelty")
        }
        return Predictions(ids, self.class_names, name, skipped=skipped, **parts)

    def _none(self, name: str, skipped: list[tuple[str, str]]) -> Predictions:
        none = torch.zeros(0, dtype=torch.float64)
        probs = none.view(0, 1).expand(0, len(self.class_names))
        return Predictions([], self.class_names, name, probs, none, none, none, skipped=skipped)

    def _temperature(self, name: str) -> float:
        if not name.endswith(SCALED):
            return 1.0
        return float(self.record.results["evaluation"]["temperatures"][name.removesuffix(SCALED)])
