"""The typed schema of a run: every key that exists, its type, its default and what it means.

A YAML file in `conf/` picks values; a key that is not here fails at once. Values that allow a word beside a
number (`shots=all`, `lr=auto`) are typed `Any` and checked where they are used.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class DatasetConfig:
    """Where images and their names come from (conf/dataset/)."""

    name: str = MISSING
    source: str = MISSING  # rendered | digits | folder | archive | features | coop
    path: str | None = None  # folder or file; relative to data.root
    id_domain: str | None = None  # the in-distribution domain; null = the first
    ood: list[str] | None = None  # domains, paths, corruptions (gaussian_noise@3); null = every other domain
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    class_names: Any = None  # mapping folder -> name, list of names, or null = as found
    split_sha256: str | None = None  # coop: checksum of the split file; null = not checked
    val_fraction: float = 0.1  # share of each class held out where the data has no validation split
    test_fraction: float = 0.4  # the same for the test split


@dataclass
class DataConfig:
    """How files are read."""

    root: str = "data"  # relative dataset paths start here
    workers: int = 0  # decoding processes; 0 = in the main process
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
    subset: str = "all"  # all | base | new (base-to-new generalisation)
    shot_list: str | None = None  # a shots.json to draw exactly the same images again


@dataclass
class AdapterConfig:
    """What is trainable (conf/adapter/)."""

    name: str = MISSING  # none | linear


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
    solver: str = "newton"  # newton | eigen
    rho: float | None = None  # gradient regularisation, ring and reng only
    rho_warmup: int | None = None  # steps over which rho grows from 0, ring and reng only
    hessian: str | None = None  # double_backprop | finite_difference, reng only


@dataclass
class FunctionSpaceConfig(OptimizerConfig):
    """The exact full posterior of an adapter that is linear in its parameters."""

    prior: Any = "crossval"  # prior variance p0: crossval (over the shots) | evidence | ratio | a number
    scale: str = "frozen"  # logit scale: evidence (part of the state) | frozen
    temperature: Any = (
        "unit"  # of the posterior draws: unit | crossval | a number (1 = the Laplace posterior)
    )
    solver: str = "auto"  # auto | direct | cg


@dataclass
class KalmanConfig(OptimizerConfig):
    """The recursive filter over batches; the words are those of clipkal.optim.KalmanFilter."""

    observation: str = "categorical"  # categorical | softmax | cosine | logits | probs
    noise: str | None = (
        None  # model | fixed | residual | residual_diagonal | residual_full; null = the observation's
    )
    covariance: str = "diagonal"  # diagonal | lowrank | kronecker | dense
    gate: str = "none"  # none | mahalanobis_hard | mahalanobis_soft | imq
    prior: Any = "ratio"  # prior variance p0: ratio (scale-free) | a number
    ratio: float | None = (
        None  # of prior=ratio: prior variance of the centred logits on the first batch; null = 3
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
