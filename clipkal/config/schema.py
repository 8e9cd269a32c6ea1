"""The typed schema of a run: every key that exists, its type, its default and what it means.

A YAML file in `conf/` picks values; a key that is not here fails at once, and so does a value that its type does not
allow: the types are those of `clipkal.settings`, which say what a setting may be. What an optimiser, an adapter or
another part can be set to is not here but in its class (options.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from omegaconf import MISSING
from pydantic import Field

from clipkal.settings import DRAWS, Count, Draws, Finite, Fraction, Positive, Steps

Kind = TypeVar("Kind", bound=type)
Source = Literal[
    "rendered", "digits", "folder", "table", "archive", "features", "coop", "torchvision", "huggingface"
]
MOST_THREADS = 1024
MANY = f"{MOST_THREADS} (very many threads end the process)"

Seed = Annotated[int, Field(ge=0, le=2**64 - 1)]
Threads = Annotated[int, Field(ge=1, le=MOST_THREADS, description=f"a whole number from 1 to {MANY}")]
Workers = Annotated[int, Field(ge=0, le=MOST_THREADS, description=f"a whole number from 0 to {MANY}")]
Shots = Annotated[
    Count | Literal["all"],
    Field(description="a whole number from 1 on or 'all' (for no training choose method=zeroshot)"),
]
Epochs = Annotated[
    int,
    Field(
        ge=1,
        le=99_999,
        description="a whole number from 1 to 99999 (0 would report the zero-shot classifier under the method's name)",
    ),
]
PartOfPass = Annotated[
    Finite, Field(gt=0, le=1, description="a number above 0 and at most 1 (1 = after each whole pass)")
]
Channels = Annotated[list[Finite], Field(min_length=3, max_length=3, description="a list of 3 numbers")]
Deviations = Annotated[
    list[Positive], Field(min_length=3, max_length=3, description="a list of 3 numbers greater than 0")
]
Rates = Annotated[list[Positive], Field(min_length=1, description="a list of one or more numbers above 0")]
Word = Annotated[
    str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", description="a word of letters, digits and _")
]
Sha256 = Annotated[
    str, Field(pattern="^[0-9a-fA-F]{64}$", description="a sha256, 64 hexadecimal digits, or null")
]
Device = Annotated[
    str,
    Field(
        pattern="^(auto|cpu|(cuda|mps|xpu)(:[0-9]+)?)$",
        description="auto, cpu, cuda, or one GPU of several such as cuda:1",
    ),
]


def node(kind: Kind) -> Kind:
    """A dataclass whose fields keep the types it was written with, while OmegaConf sees those that it knows.

    OmegaConf reads the annotations and knows no Literal and no union; `check` reads the fields.
    """
    kind.__annotations__ = {name: _known(hint) for name, hint in kind.__annotations__.items()}
    return kind


def _known(hint: Any) -> Any:
    """The nearest type that OmegaConf knows."""
    if get_origin(hint) is Annotated:
        return _known(get_args(hint)[0])
    if get_origin(hint) is Literal:
        kinds = {type(one) for one in get_args(hint)}
        return kinds.pop() if len(kinds) == 1 else Any
    if get_origin(hint) in (list, Sequence):
        return list[_known(get_args(hint)[0])]  # type: ignore[misc]
    inner = [one for one in get_args(hint) if one is not type(None)]
    if get_origin(hint) is None or get_origin(hint) is dict:
        return hint
    known = _known(inner[0]) if len(inner) == 1 else Any
    return Any if known is Any else Union[known, None]  # noqa: UP007


@node
@dataclass
class ShiftConfig:
    """An OOD set from another place than its dataset; dataset.ood names it."""

    path: str = MISSING  # folder of class folders, .npz, .csv or …_data.npy; relative to data.root
    domain: str | None = None  # of a file with several; null = the one called like the set
    # {class there: class here}, or a .json of them; classes that are not in it are left out
    class_map: Any = None
    border: Steps = 0  # pixels to cut off every side of its images
    # scored over the classes that occur in it, or all
    classes: Literal["occurring", "all"] = "occurring"
    urls: dict[str, str] = field(default_factory=dict)  # what dataset.download fetches: address -> sha256


@node
@dataclass
class DatasetConfig:
    """Where images and their names come from (conf/dataset/)."""

    name: str = MISSING  # names the run; without a path, also its folder below data.root
    source: Source = MISSING  # what kind of files, and who reads them (docs/datasets.md)
    path: str | None = None  # folder or file; relative to data.root
    id_domain: str | None = None  # the in-distribution domain; null = the first
    # domains, shifts by name, name:path, corruptions (gaussian_noise@3); null = every other domain
    ood: list[str] | None = None
    shifts: dict[str, ShiftConfig] = field(default_factory=dict)  # OOD sets from elsewhere that ood can name
    # the sentences of a class, {} its name; their text features are averaged
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    class_names: Any = None  # mapping folder -> name, list of names, a file of them, or null = as found
    split_sha256: Sha256 | None = None  # coop: checksum of the split file; null = not checked
    val_fraction: Fraction = 0.1  # of each class, held out where the data has no validation split
    test_fraction: Fraction = 0.4  # the same for the test split
    # table, huggingface: what the columns path (or image), label, split and domain are called there
    columns: dict[str, str] = field(default_factory=dict)
    # table, huggingface: train | val | test | any OOD name -> a split, or {column: value, [values] or low..high}
    splits: dict[str, Any] = field(default_factory=dict)
    torchvision: str | None = None  # torchvision: the class in torchvision.datasets, such as CIFAR10
    repository: str | None = None  # huggingface: name on the Hub; null = the folder dataset.path
    configs: list[str] | None = None  # huggingface: configurations to join; null = the only one
    download: bool = False  # torchvision, huggingface: fetch what is missing


@node
@dataclass
class DataConfig:
    """How files are read."""

    root: str = "data"  # relative dataset paths start here
    workers: Workers = 0  # threads that decode beside the model; 0 = as many as torch has
    on_bad_image: Literal["error", "skip"] = "error"  # skipped images are counted in the results
    # tell a changed image by its contents (reads every file), not by size and time of change
    verify: bool = False
    cache: str | None = None  # feature cache; null = $CLIPKAL_CACHE or ~/.cache/clipkal
    progress: bool = True  # bars on long work


@node
@dataclass
class BackboneConfig:
    """The frozen CLIP (conf/backbone/)."""

    name: str = MISSING  # names the run
    model: str = MISSING  # open_clip architecture, local-dir:/…, hf-hub:org/name, mini, or precomputed
    pretrained: str | None = None  # pretrained tag or checkpoint file
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the image tower; features are kept in fp32
    batch_size: Count = 128  # images a forward pass
    image_mean: Channels | None = None  # what pixels are normalised by; null = as the weights say
    image_std: Deviations | None = None  # likewise
    weights_sha256: Sha256 | None = None  # of the checkpoint file
    quick_gelu: bool | None = (
        None  # whether the weights were trained with QuickGELU; null = as their origin says
    )


@node
@dataclass
class FewshotConfig:
    """Which images are shown for learning."""

    shots: Shots = 16  # images a class
    validation: Literal["none", "fewshot", "full"] = (
        "fewshot"  # images to choose on; fewshot: min(shots, 4) a class
    )
    protocol: Literal["coop", "cliplora"] = "coop"  # whose draw of the shots a seed repeats
    short_class: Literal["error", "keep"] = "error"  # a class with fewer images than shots
    # base-to-new generalisation: with base the new half is tested too
    subset: Literal["all", "base", "new"] = "all"
    transfer: list[str] = field(
        default_factory=list
    )  # other datasets to test on: names in conf/dataset, name:path
    shot_list: str | None = None  # a shots.json to draw exactly the same images again


@node
@dataclass
class PartConfig:
    """A class or function that the program calls, by its dotted name; options.py adds its settings."""

    _target_: str = ""


@node
@dataclass
class AdapterConfig(PartConfig):
    """What is trainable (conf/adapter/)."""

    name: str = MISSING


@node
@dataclass
class OptimizerConfig(PartConfig):
    """How the adapter learns (conf/optimizer/): from all the shots at once, unless the loop below has more to say."""

    name: str = MISSING


@node
@dataclass
class PassesConfig(OptimizerConfig):
    """An optimiser that goes over the shots in batches."""

    epochs: Epochs = 1  # passes over the shots
    batch_size: Count = 32  # images a step


@node
@dataclass
class RatesConfig(PassesConfig):
    """An optimiser with a learning rate; it and the epoch are chosen on few-shot validation images."""

    lr: Positive | Literal["auto"] = "auto"  # auto = the best of lr_grid by validation NLL
    # the learning rates to try
    lr_grid: Rates = field(default_factory=lambda: [1e-4, 3e-4, 1e-3, 3e-3, 1e-2])
    default_lr: Positive = 1e-3  # used when fewshot.validation=none
    schedule: Literal["cosine", "constant"] = "cosine"  # of the learning rate, down to 0
    epochs: Epochs = 50  # passes over the shots, for each rate
    # best = the epoch with the lowest validation NLL (epoch 0 is zero-shot)
    keep: Literal["best", "last"] = "best"


@node
@dataclass
class PredictiveConfig(PartConfig):
    """How probabilities and their uncertainty are read out (conf/predictive/)."""

    name: Word = MISSING
    samples: Draws = DRAWS  # draws from the posterior, where the predictive takes some
    temperature_scaling: bool = True  # also report it at a temperature fitted on validation images


@node
@dataclass
class TrackingConfig:
    """The dashboard beside the run directory (conf/tracking/)."""

    backend: Literal["wandb", "tensorboard", "trackio"] = "wandb"  # Weights & Biases, or an extra
    mode: Literal["offline", "online", "disabled"] = "offline"  # offline: files to be sent later
    project: Annotated[str, Field(min_length=1, description="a name")] = "clipkal"  # on the dashboard
    entity: str | None = None  # the team or account; null = yours
    group: str | None = None  # null = <dataset>-<backbone>-<method>-<shots>shot, so that seeds fold
    job_type: str | None = None  # null = train, or evaluate where nothing is trained
    tags: list[str] = field(default_factory=list)  # beside dataset, backbone, method, shots and seed
    notes: str | None = None  # a text that stands beside the run
    # curves within an epoch have at most so many points; 0 = none
    curve_points: Annotated[int, Field(ge=0, le=100_000)] = 200
    # figures and thumbnails; auto: of single runs, not of a multirun's jobs
    media: bool | Literal["auto"] = "auto"
    artifacts: bool = True  # all that clipkal.load_run reads
    # seconds to wait for the server before going on offline
    timeout: Annotated[float, Field(gt=0, le=86_400)] = 30.0


Objective = Annotated[
    Literal["val_nll"],
    Field(
        description="val_nll, the NLL of the few-shot validation images; settings are never chosen by a test set"
    ),
]


@node
@dataclass
class SweepConfig:
    """What concerns several runs at once (-m)."""

    on_error: Literal["continue", "stop"] = "continue"  # after a job that failed, begin the others or not
    objective: Objective = "val_nll"  # what a sweeper such as hydra/sweeper=tune minimises


@node
@dataclass
class Config:
    """One run."""

    dataset: DatasetConfig = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = MISSING
    fewshot: FewshotConfig = field(default_factory=FewshotConfig)
    method: str = MISSING  # a preset of adapter, optimizer and predictive (conf/method/)
    adapter: AdapterConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    predictive: PredictiveConfig = MISSING
    tracking: TrackingConfig = MISSING
    plugins: list[str] = field(default_factory=list)  # your own modules, whose classes _target_ may name
    seed: Seed = 1  # of the draw of the shots and of all that is random after it
    device: Device = "auto"  # auto = a GPU where there is one
    threads: Threads | None = None  # CPU threads of torch; null = torch's own choice
    output_dir: str = "outputs"  # one folder a run below it
    # the run's figures; auto: of single runs, since clipkal-report draws those of a multirun
    figures: bool | Literal["auto"] = "auto"
    # what stays on disk beside the figures: the model and every image's predictions, one of them, or neither (results)
    keep: Literal["all", "predictions", "model", "results"] = "all"
    checkpoint_every: Annotated[Finite, Field(ge=0)] = 30.0  # seconds between training checkpoints
    # passes between two looks at the validation images: 0.1 = ten a pass, for the curves; what is kept is chosen after whole passes
    validate_every: PartOfPass = 1.0
    sweep: SweepConfig = field(default_factory=SweepConfig)
