"""The typed schema of a run: every key that exists, its type, its default and what it means.

A YAML file in `conf/` picks values; a key that is not here fails at once, and so does a value outside the rule
that stands beside the default (`values.py`). Values that allow a word beside a number (`shots=all`, `lr=auto`)
are typed `Any`.
"""

# ruff: noqa: RUF009 (`setting` is a dataclass field)

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from clipkal.config.values import (
    FLAG,
    NULL,
    POSITIVE,
    SHA256,
    SHARE,
    each,
    matching,
    number,
    setting,
    whole,
    words,
)

SOURCES = (
    "rendered", "digits", "folder", "table", "archive", "features", "coop", "torchvision", "huggingface",
)  # fmt: skip
MOST_THREADS = 1024

SHOTS = whole(1) | words("all").because("for no training choose method=zeroshot")
EPOCHS = whole(1, 99_999).because("0 would report the zero-shot classifier under the method's name")
MANY = "very many threads end the process"
PRIOR = number(1e-12, 1e12)
TEMPERATURE = number(0, 1e6)
BLOCKS = matching("all|(first|last):0*[1-9][0-9]*", "all, first:2, last:2")
DEVICE = matching(
    "auto|cpu|(cuda|mps|xpu)(:[0-9]+)?", "auto, cpu, cuda, or one GPU of several such as cuda:1"
)


@dataclass
class ShiftConfig:
    """An OOD set from another place than its dataset; dataset.ood names it."""

    path: str = MISSING  # folder of class folders, .npz, .csv or …_data.npy; relative to data.root
    domain: str | None = None  # of a file with several; null = the one called like the set
    class_map: Any = (
        None  # {class there: class here}, or a .json of them; classes that are not in it are left out
    )
    border: int = setting(0, whole(0))  # pixels to cut off every side of its images
    # scored over the classes that occur in it, or all
    classes: str = setting("occurring", words("occurring", "all"))
    urls: dict[str, str] = field(default_factory=dict)  # what dataset.download fetches: address -> sha256


@dataclass
class DatasetConfig:
    """Where images and their names come from (conf/dataset/)."""

    name: str = MISSING
    source: str = setting(MISSING, words(*SOURCES))
    path: str | None = None  # folder or file; relative to data.root
    id_domain: str | None = None  # the in-distribution domain; null = the first
    # domains, shifts by name, name:path, corruptions (gaussian_noise@3); null = every other domain
    ood: list[str] | None = None
    shifts: dict[str, ShiftConfig] = field(default_factory=dict)  # OOD sets from elsewhere that ood can name
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    class_names: Any = None  # mapping folder -> name, list of names, a file of them, or null = as found
    split_sha256: str | None = setting(
        None, SHA256 | NULL
    )  # coop: checksum of the split file; null = not checked
    val_fraction: float = setting(
        0.1, SHARE
    )  # of each class, held out where the data has no validation split
    test_fraction: float = setting(0.4, SHARE)  # the same for the test split
    # table, huggingface: what the columns path (or image), label, split and domain are called there
    columns: dict[str, str] = field(default_factory=dict)
    # table, huggingface: train | val | test | any OOD name -> a split, or {column: value, [values] or low..high}
    splits: dict[str, Any] = field(default_factory=dict)
    torchvision: str | None = None  # torchvision: the class in torchvision.datasets, such as CIFAR10
    repository: str | None = None  # huggingface: name on the Hub; null = the folder dataset.path
    configs: list[str] | None = None  # huggingface: configurations to join; null = the only one
    download: bool = False  # torchvision, huggingface: fetch what is missing


@dataclass
class DataConfig:
    """How files are read."""

    root: str = "data"  # relative dataset paths start here
    # threads that decode beside the model; 0 = as many as torch has
    workers: int = setting(0, whole(0, MOST_THREADS).because(MANY))
    on_bad_image: str = setting("error", words("error", "skip"))  # skipped images are counted in the results
    # tell a changed image by its contents (reads every file), not by size and time of change
    verify: bool = False
    cache: str | None = None  # feature cache; null = $CLIPKAL_CACHE or ~/.cache/clipkal
    progress: bool = True


@dataclass
class BackboneConfig:
    """The frozen CLIP (conf/backbone/)."""

    name: str = MISSING
    model: str = MISSING  # open_clip architecture, local-dir:/…, hf-hub:org/name, mini, or precomputed
    pretrained: str | None = None  # pretrained tag or checkpoint file
    precision: str = setting("fp32", words("fp32", "bf16", "fp16"))
    batch_size: int = setting(128, whole(1))
    image_mean: list[float] | None = setting(None, each(number(), 3) | NULL)
    image_std: list[float] | None = setting(None, each(POSITIVE, 3) | NULL)
    weights_sha256: str | None = setting(None, SHA256 | NULL)  # of the checkpoint file
    quick_gelu: bool | None = (
        None  # whether the weights were trained with QuickGELU; null = as their origin says
    )


@dataclass
class FewshotConfig:
    """Which images are shown for learning."""

    shots: Any = setting(16, SHOTS)  # images a class
    validation: str = setting("fewshot", words("none", "fewshot", "full"))  # fewshot: min(shots, 4) a class
    protocol: str = setting("coop", words("coop", "cliplora"))
    short_class: str = setting("error", words("error", "keep"))  # a class with fewer images than shots
    # base-to-new generalisation: with base the new half is tested too
    subset: str = setting("all", words("all", "base", "new"))
    transfer: list[str] = field(
        default_factory=list
    )  # other datasets to test on: names in conf/dataset, name:path
    shot_list: str | None = None  # a shots.json to draw exactly the same images again


@dataclass
class AdapterConfig:
    """What is trainable (conf/adapter/)."""

    name: str = setting(MISSING, words("none", "linear", "lora"))


@dataclass
class LinearConfig(AdapterConfig):
    """A residual linear map on the image feature."""

    coordinates: str = setting("classes", words("classes", "text"))  # what its weights are measured in


@dataclass
class LoRAConfig(AdapterConfig):
    """Low-rank changes of the towers' weights; the words are those of clipkal.adapters.lora.LoRASettings."""

    rank: int = setting(4, whole(1))
    alpha: float | None = setting(None, POSITIVE | NULL)  # the change is (alpha / rank) B A; null = rank
    dropout: float = setting(0.0, SHARE)
    targets: list[str] = setting(["q", "k", "v"], each(words("q", "k", "v", "out", "fc1", "fc2", "conv")))
    blocks: Any = setting("all", BLOCKS | each(whole(-10_000)))  # negative places count from the end
    towers: str = setting("vision", words("vision", "text", "both"))


@dataclass
class OptimizerConfig:
    """How the adapter learns (conf/optimizer/); each optimiser has a schema of its own below."""

    name: str = MISSING


@dataclass
class FirstOrderConfig(OptimizerConfig):
    """AdamW, SGD and their relatives; the learning rate and the epoch are chosen on few-shot validation images."""

    lr: Any = setting("auto", POSITIVE | words("auto"))  # auto = the best of lr_grid by validation NLL
    lr_grid: list[float] = setting([1e-4, 3e-4, 1e-3, 3e-3, 1e-2], each(POSITIVE))
    default_lr: float = setting(1e-3, POSITIVE)  # used when fewshot.validation=none
    weight_decay: float = setting(0.01, number(0))
    momentum: float | None = setting(None, SHARE | NULL)  # not for adamw, adagrad and sophia
    schedule: str = setting("cosine", words("cosine", "constant"))
    epochs: int = setting(50, EPOCHS)
    # best = the epoch with the lowest validation NLL (epoch 0 is zero-shot)
    keep: str = setting("best", words("best", "last"))
    batch_size: int = setting(32, whole(1))


@dataclass
class NaturalGradientConfig(FirstOrderConfig):
    """Kronecker-factored natural gradients; the words are those of clipkal.optim.KFAC, RING and RENG."""

    damping: float = setting(0.1, POSITIVE)  # in units of the Fisher matrix's mean eigenvalue
    kl_clip: float | None = setting(0.03, POSITIVE | NULL)  # trust region; null = none
    fisher: str = setting("true", words("true", "ggn", "empirical"))  # true: sampled labels
    ema: float = setting(0.95, SHARE)
    update_interval: int = setting(10, whole(1))  # steps between refreshes of the factors and their inverses
    solver: str = setting("cholesky", words("cholesky", "newton", "eigen"))
    rho: float | None = setting(None, number(0) | NULL)  # gradient regularisation, ring and reng only
    # steps over which rho grows from 0, ring and reng only
    rho_warmup: int | None = setting(None, whole(0) | NULL)


@dataclass
class FunctionSpaceConfig(OptimizerConfig):
    """The Laplace posterior, with its full covariance, of an adapter that is linear in its parameters."""

    # prior variance p0; crossval: over the shots
    prior: Any = setting("crossval", PRIOR | words("crossval", "evidence", "ratio"))
    # of the posterior draws; 1 = the Laplace posterior
    temperature: Any = setting("unit", TEMPERATURE | words("unit", "crossval"))
    solver: str = setting("auto", words("auto", "direct", "cg"))


@dataclass
class KalmanConfig(OptimizerConfig):
    """The recursive filter over batches; the words are those of clipkal.optim.KalmanFilter."""

    # categorical_merged: unlikely classes as one, for many classes
    observation: str = setting(
        "categorical_merged",
        words("categorical", "categorical_merged", "softmax", "cosine", "probs"),
    )
    noise: str | None = setting(
        None, words("model", "fixed", "residual", "residual_full") | NULL
    )  # null = the observation's
    # auto: subspace for a linear adapter, else diagonal
    covariance: str = setting("auto", words("auto", "diagonal", "subspace", "lowrank", "dense"))
    gate: str = setting("none", words("none", "mahalanobis_hard", "mahalanobis_soft", "imq"))
    prior: Any = setting("ratio", PRIOR | words("ratio"))  # prior variance p0; ratio: scale-free
    # of prior=ratio: prior variance of the centred logits on the first batch; null = 10, or 3 where not iterated
    ratio: float | None = setting(None, POSITIVE | NULL)
    process_noise: float = setting(0.0, number(0))
    fading: float = setting(1.0, number(0, 1, above=True))
    rho: float = setting(0.0, number(0))  # gradient regularisation of R-Kalman
    rho_as: str = setting("relative", words("relative", "absolute"))  # relative to the first batch
    warmup: int = setting(0, whole(0))  # steps over which rho grows from 0
    store_regularisation: bool = True
    epochs: int = setting(1, EPOCHS)
    # tempered: each pass counts 1/epochs; optimiser: every pass counts in full
    epochs_as: str = setting("tempered", words("tempered", "optimiser"))
    batch_size: int = setting(32, whole(1))
    # images taken jointly; null: the whole batch
    block: Any = setting("auto", whole(1) | words("auto") | NULL)
    # of the posterior draws; 1 = the posterior
    temperature: Any = setting("unit", TEMPERATURE | words("unit"))


@dataclass
class PredictiveConfig:
    """How probabilities and their uncertainty are read out (conf/predictive/)."""

    name: str = setting("sampled", words("plugin", "sampled", "probit"))
    samples: int = setting(100, whole(1, 1_000_000))  # posterior draws
    temperature: bool = True  # also report the plug-in at a temperature fitted on validation images


@dataclass
class TrackingConfig:
    """Weights & Biases beside the run directory (conf/tracking/)."""

    mode: str = setting("offline", words("offline", "online", "disabled"))
    project: str = setting("clipkal", matching(".+", "a name"))
    entity: str | None = None
    group: str | None = None  # null = <dataset>-<backbone>-<method>-<shots>shot, so that seeds fold
    tags: list[str] = field(default_factory=list)
    timeout: float = setting(
        30.0, number(0, 86_400, above=True)
    )  # seconds to wait for the server before going on offline


@dataclass
class Config:
    """One run."""

    dataset: DatasetConfig = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = MISSING
    fewshot: FewshotConfig = field(default_factory=FewshotConfig)
    method: str = MISSING
    adapter: AdapterConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    predictive: PredictiveConfig = MISSING
    tracking: TrackingConfig = MISSING
    seed: int = setting(1, whole(0, 2**64 - 1))
    device: str = setting("auto", DEVICE)
    # CPU threads of torch; null = torch's own choice
    threads: int | None = setting(None, whole(1, MOST_THREADS).because(MANY) | NULL)
    output_dir: str = "outputs"
    # the reliability diagram; auto: of single runs, since clipkal-report draws those of a multirun
    figures: Any = setting("auto", words("auto") | FLAG)
    checkpoint_every: float = setting(30.0, number(0))  # seconds between training checkpoints
