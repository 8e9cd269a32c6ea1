"""The typed schema of a run: every key that exists, its type, its default and what it means.

A YAML file in `conf/` picks values; a key that is not here fails at once. Values that allow a word beside a
number (`shots=all`, `lr=auto`) are typed `Any` and checked where they are used.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class ShiftConfig:
    """An OOD set from another place than its dataset; dataset.ood names it."""

    path: str = MISSING  # folder of class folders, .npz, .csv or …_data.npy; relative to data.root
    domain: str | None = None  # of a file with several; null = the one called like the set
    class_map: Any = (
        None  # {class there: class here}, or a .json of them; classes that are not in it are left out
    )
    border: int = 0  # pixels to cut off every side of its images
    classes: str = "occurring"  # scored over: occurring (the classes that occur in it) | all
    urls: dict[str, str] = field(default_factory=dict)  # what dataset.download fetches: address -> sha256


@dataclass
class DatasetConfig:
    """Where images and their names come from (conf/dataset/)."""

    name: str = MISSING
    # rendered | digits | folder | table | archive | features | coop | torchvision | huggingface
    source: str = MISSING
    path: str | None = None  # folder or file; relative to data.root
    id_domain: str | None = None  # the in-distribution domain; null = the first
    # domains, shifts by name, name:path, corruptions (gaussian_noise@3); null = every other domain
    ood: list[str] | None = None
    shifts: dict[str, ShiftConfig] = field(default_factory=dict)  # OOD sets from elsewhere that ood can name
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    class_names: Any = None  # mapping folder -> name, list of names, a file of them, or null = as found
    split_sha256: str | None = None  # coop: checksum of the split file; null = not checked
    val_fraction: float = 0.1  # share of each class held out where the data has no validation split
    test_fraction: float = 0.4  # the same for the test split
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
    workers: int = 0  # threads that decode beside the model; 0 = as many as torch has
    on_bad_image: str = "error"  # error | skip (skipped images are counted in the results)
    cache: str | None = None  # feature cache; null = $CLIPKAL_CACHE or ~/.cache/clipkal
    progress: bool = True


@dataclass
class BackboneConfig:
    """The frozen CLIP (conf/backbone/)."""

    name: str = MISSING
    model: str = MISSING  # open_clip architecture, local-dir:/…, hf-hub:org/name, mini, or precomputed
    pretrained: str | None = None  # pretrained tag or checkpoint file
    precision: str = "fp32"  # fp32 | bf16 | fp16
    batch_size: int = 128
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    weights_sha256: str | None = None  # of the checkpoint file
    quick_gelu: bool | None = (
        None  # whether the weights were trained with QuickGELU; null = as their origin says
    )


@dataclass
class FewshotConfig:
    """Which images are shown for learning."""

    shots: Any = 16  # images a class, or all
    validation: str = "fewshot"  # none | fewshot (min(shots, 4) a class) | full
    protocol: str = "coop"  # coop | cliplora
    short_class: str = "error"  # a class with fewer images than shots: error | keep
    subset: str = "all"  # all | base (then the new half is tested too) | new (base-to-new generalisation)
    transfer: list[str] = field(
        default_factory=list
    )  # other datasets to test on: names in conf/dataset, name:path
    shot_list: str | None = None  # a shots.json to draw exactly the same images again


@dataclass
class AdapterConfig:
    """What is trainable (conf/adapter/)."""

    name: str = MISSING  # none | linear | lora


@dataclass
class LinearConfig(AdapterConfig):
    """A residual linear map on the image feature."""

    coordinates: str = "classes"  # what its weights are measured in: classes | text


@dataclass
class LoRAConfig(AdapterConfig):
    """Low-rank changes of the towers' weights; the words are those of clipkal.adapters.lora.LoRASettings."""

    rank: int = 4
    alpha: float | None = None  # the change is (alpha / rank) B A; null = rank
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["q", "k", "v"])
    blocks: Any = "all"  # all | first:n | last:n | a list of places
    towers: str = "vision"  # vision | text | both


@dataclass
class OptimizerConfig:
    """How the adapter learns (conf/optimizer/); each optimiser has a schema of its own below."""

    name: str = MISSING


@dataclass
class FirstOrderConfig(OptimizerConfig):
    """AdamW, SGD and their relatives; the learning rate and the epoch are chosen on few-shot validation
    images.
    """

    lr: Any = "auto"  # a number, or auto = the best of lr_grid by validation NLL
    lr_grid: list[float] = field(default_factory=lambda: [1e-4, 3e-4, 1e-3, 3e-3, 1e-2])
    default_lr: float = 1e-3  # used when fewshot.validation=none
    weight_decay: float = 0.01
    momentum: float | None = None  # sgd and sam only
    schedule: str = "cosine"  # cosine | constant
    epochs: int = 50
    keep: str = "best"  # best = the epoch with the lowest validation NLL (epoch 0 is zero-shot) | last
    batch_size: int = 32


@dataclass
class NaturalGradientConfig(FirstOrderConfig):
    """Kronecker-factored natural gradients; the words are those of clipkal.optim.KFAC, RING and RENG."""

    damping: float = 0.1  # in units of the Fisher matrix's mean eigenvalue
    kl_clip: float | None = 0.03  # trust region; null = none
    fisher: str = "true"  # true (sampled labels) | ggn | empirical
    ema: float = 0.95
    update_interval: int = 10  # steps between refreshes of the factors and their inverses
    solver: str = "cholesky"  # cholesky | newton | eigen
    rho: float | None = None  # gradient regularisation, ring and reng only
    rho_warmup: int | None = None  # steps over which rho grows from 0, ring and reng only


@dataclass
class FunctionSpaceConfig(OptimizerConfig):
    """The Laplace posterior, with its full covariance, of an adapter that is linear in its parameters."""

    prior: Any = "crossval"  # prior variance p0: crossval (over the shots) | evidence | ratio | a number
    temperature: Any = (
        "unit"  # of the posterior draws: unit | crossval | a number (1 = the Laplace posterior)
    )
    solver: str = "auto"  # auto | direct | cg


@dataclass
class KalmanConfig(OptimizerConfig):
    """The recursive filter over batches; the words are those of clipkal.optim.KalmanFilter."""

    # categorical | categorical_merged (unlikely classes as one: many classes) | softmax | cosine | logits | probs
    observation: str = "categorical_merged"
    noise: str | None = (
        None  # model | fixed | residual | residual_diagonal | residual_full; null = the observation's
    )
    # auto (subspace for a linear adapter, else diagonal) | diagonal | subspace | lowrank | kronecker | dense
    covariance: str = "auto"
    gate: str = "none"  # none | mahalanobis_hard | mahalanobis_soft | imq
    prior: Any = "ratio"  # prior variance p0: ratio (scale-free) | a number
    ratio: float | None = (
        None  # of prior=ratio: prior variance of the centred logits on the first batch; null = 10, or 3 where not iterated
    )
    process_noise: float = 0.0
    fading: float = 1.0
    rho: float = 0.0  # gradient regularisation of R-Kalman
    rho_as: str = "relative"  # relative (to the first batch) | absolute
    warmup: int = 0  # steps over which rho grows from 0
    store_regularisation: bool = True
    epochs: int = 1
    epochs_as: str = "tempered"  # tempered: each pass counts 1/epochs | optimiser: every pass counts in full
    batch_size: int = 32
    block: Any = "auto"  # images taken jointly: auto | null (the whole batch) | a number
    temperature: Any = "unit"  # of the posterior draws: unit | a number (1 = the posterior)
    learn_scale: bool = False  # the logit scale is part of the state


@dataclass
class PredictiveConfig:
    """How probabilities and their uncertainty are read out (conf/predictive/)."""

    name: str = "sampled"  # plugin | sampled | probit
    samples: int = 100  # posterior draws
    temperature: bool = True  # also report the plug-in at a temperature fitted on validation images


@dataclass
class TrackingConfig:
    """Weights & Biases beside the run directory (conf/tracking/)."""

    mode: str = "offline"  # offline | online | disabled
    project: str = "clipkal"
    entity: str | None = None
    group: str | None = None  # null = <dataset>-<backbone>-<method>-<shots>shot, so that seeds fold
    tags: list[str] = field(default_factory=list)
    timeout: float = 30.0  # seconds to wait for the server before going on offline


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
    seed: int = 1
    device: str = "auto"  # auto | cpu | cuda | cuda:1
    threads: int | None = None  # CPU threads of torch; null = torch's own choice
    output_dir: str = "outputs"
    checkpoint_every: float = 30.0  # seconds between training checkpoints
