"""How the embedded model learns: contrastive loss, schedule, and a run that can be stopped and resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clipkal.data.world.shapes import PRETRAINING_CLASSES
from clipkal.errors import CheckpointError
from clipkal.files import atomic_path
from clipkal.pretraining.model import EMBED_DIM, MEAN, STD, build_model
from clipkal.pretraining.stream import Batch, Curriculum, PretrainingStream

FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """The optimiser's settings."""

    learning_rate: float = 1e-3  # at its peak; a cosine takes it to zero
    warmup_steps: int = 80
    weight_decay: float = 0.1  # of matrices and kernels; vectors are not decayed
    noun_weight: float = 1.0  # of the auxiliary loss, falling to 0.3 of it at the end
    clip_norm: float = 1.0


@dataclass(frozen=True)
class Progress:
    """What one step reports."""

    step: int
    contrastive: float  # loss in nats
    noun: float  # auxiliary loss in nats
    accuracy: float  # of the auxiliary head on this batch, 0..1
    seconds: float  # processor time of the training process so far


def normalise(images: Tensor) -> Tensor:
    """uint8 images [n, 3, H, W] as the tower wants them."""
    return ((images.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def contrastive_loss(images: Tensor, texts: Tensor, pairs: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric loss where several images may share a caption.

    Args:
        images: unit features [n, d].
        texts: unit features [u, d] of the different captions.
        pairs: long [n], each image's caption; every caption has at least one image.
        scale: the inverse temperature.
    """
    logits = scale * images @ texts.T
    target = F.one_hot(pairs, len(texts)).to(logits.dtype)
    by_image = F.cross_entropy(logits, pairs)
    by_text = -(F.log_softmax(logits, dim=0) * target / target.sum(dim=0)).sum(dim=0).mean()
    return (by_image + by_text) / 2


class Trainer:
    """The state of a pretraining run: model, auxiliary head, optimiser and the number of steps done."""

    def __init__(self, plan: Curriculum, recipe: Recipe, tokenizer: SimpleTokenizer) -> None:
        self.plan, self.recipe, self.tokenizer = plan, recipe, tokenizer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            self.model: open_clip.CLIP = build_model(tokenizer.vocab_size)
            self.head = nn.Linear(EMBED_DIM, len(PRETRAINING_CLASSES))
        self.model.visual.to(memory_format=torch.channels_last)
        self.parameters = [*self.model.parameters(), *self.head.parameters()]
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
        self.step = 0
        self.seconds = 0.0

    def run(
        self,
        steps: int | None = None,
        *,
        workers: int = 1,
        report: Callable[[Progress], None] | None = None,
        checkpoint: Path | None = None,
        checkpoint_every: int = 100,
    ) -> None:
        """Train until step `steps` (default: the end of the plan), saving to `checkpoint` on the way."""
        end = self.plan.steps if steps is None else min(steps, self.plan.steps)
        started, before = time.process_time(), self.seconds
        for batch in self._batches(end, workers):
            contrastive, noun, accuracy = self._learn(batch)
            self.step += 1
            self.seconds = before + time.process_time() - started
            if report is not None:
                report(Progress(self.step, contrastive, noun, accuracy, self.seconds))
            if checkpoint is not None and (self.step % checkpoint_every == 0 or self.step == end):
                self.save(checkpoint)

    def _batches(self, end: int, workers: int) -> Iterator[Batch]:
        """The batches from the current step on, rendered ahead by `workers` processes (0: in this one)."""
        stream = PretrainingStream(self.plan, self.tokenizer)
        order = range(self.step, end)
        ahead: dict[str, Any] = {"prefetch_factor": 4} if workers else {}
        return iter(DataLoader(stream, batch_size=None, sampler=order, num_workers=workers, **ahead))

    def _learn(self, batch: Batch) -> tuple[float, float, float]:
        """One step; returns the contrastive loss, the noun loss and the noun accuracy."""
        done = self.step / self.plan.steps
        warmup = min(1.0, (self.step + 1) / self.recipe.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * done))
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16):
            features = self.model.encode_image(normalise(batch.images))
        features = features.float()
        texts = self.model.encode_text(batch.tokens, normalize=True)
        scale = self.model.logit_scale.exp().clamp(max=100)
        contrastive = contrastive_loss(F.normalize(features, dim=-1), texts, batch.pairs, scale)
        guess = self.head(features)
        named = batch.nouns >= 0
        noun = F.cross_entropy(guess[named], batch.nouns[named])
        loss = contrastive + self.recipe.noun_weight * (1 - 0.7 * done) * noun
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        self.optimizer.step()
        accuracy = (guess.argmax(dim=1) == batch.nouns)[named].float().mean()
        return contrastive.item(), noun.item(), accuracy.item()

    def _settings(self) -> dict[str, Any]:
        return {"format": FORMAT, "plan": asdict(self.plan), "recipe": asdict(self.recipe)}

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs, atomically."""
        state = {
            **self._settings(),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_path(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of the same plan and recipe.

        Raises:
            CheckpointError: the file is damaged or belongs to a run with other settings.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            found = {key: state[key] for key in self._settings()}
        except Exception as error:
            raise CheckpointError(f"{path}: not a pretraining checkpoint ({error})") from error
        if found != self._settings():
            raise CheckpointError(f"{path}: made with other settings: {found}, asked for {self._settings()}")
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
