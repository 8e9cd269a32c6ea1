"""What a model knows of whole sets of images: logits, draws, covariances, zero-shot; in batches within a memory budget.

Random numbers: draws come in blocks of `SAMPLE_BLOCK`, and block k always uses a fresh CPU generator seeded
with digest(seed, k), for every batch of every set. So a posterior that draws parameters (or functions) from
the generator gives each image the same draws however the images are batched, and all sets are seen by the
same drawn models. One that draws each image's logits independently is asked for all draws of an image at once; it is
as reproducible, but its draws depend on the batches.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from clipkal.adapters import Adapter
from clipkal.errors import ConfigError
from clipkal.files import digest
from clipkal.optim.posterior import Posterior
from clipkal.uncertainty.chunk import Chunk, Need

SAMPLE_BLOCK = 16
MEMORY_BUDGET = 2**29
"""Bytes that one block of logit draws (with its softmax), or one chunk of covariances, may take."""

Model = Callable[[Tensor], Tensor]
"""Inputs (B, …) to logits (B, C)."""


class Reader:
    """A model and its posterior, asked for whole sets in evaluation mode.

    All answers are finite and on the CPU; draws are in the
    precision they come in, all else is float64.

    Args:
        model: inputs (B, …) -> logits (B, C).
        posterior: for draws and covariances.
        seed: which draws.
        batch_size: most images a call.
    """

    def __init__(
        self,
        model: Model,
        posterior: Posterior | None = None,
        seed: int = 0,
        batch_size: int = 1024,
    ) -> None:
        self.model, self.posterior, self.seed, self.batch_size = model, posterior, seed, batch_size
        first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        self._device = first.device if first is not None else None

    def checked(self, needs: Iterable[Need]) -> set[Need]:
        """The same needs; ConfigError where there is nobody to ask for one of them."""
        wanted = set(needs)
        if wanted & {"draws", "covariance"} and self.posterior is None:
            raise ConfigError("draws and covariances of the logits need a posterior, and there is none")
        if wanted & {"zeroshot", "features"} and not isinstance(self.model, Adapter):
            raise ConfigError(f"{type(self.model).__name__} is no adapter, so nothing is known of zero-shot")
        return wanted

    def logits(self, inputs: Tensor, count: int, name: str) -> Tensor:
        """Logits of `count` images of the set `name`, (N, C)."""
        return self.whole(inputs, count, (), name).logits

    def classes(self, inputs: Tensor, name: str) -> int:
        """C, from the logits of the first image."""
        return self.logits(inputs, 1, name).shape[1]

    def whole(self, inputs: Tensor, count: int, needs: Iterable[Need], name: str) -> Chunk:
        """What is needed of all images of a set at once, but the draws."""
        return Chunk.joined([chunk for _, chunk in self.chunks(inputs, count, needs, name)])

    def chunks(
        self, inputs: Tensor, count: int, needs: Iterable[Need], name: str
    ) -> Iterator[tuple[slice, Chunk]]:
        """(images, what is needed of them beside the logits), but the draws; every image once.

        Raises:
            ConfigError: the model or the posterior cannot give what is needed.
            FloatingPointError: a value is not finite; names the set and the images.
        """
        wanted = self.checked(needs)
        for rows in _batches(count, self.batch_size):
            batch = self._batch(inputs, rows)
            chunk = Chunk(
                self._asked(self.model, batch, name, rows), **self._frozen(batch, wanted, name, rows)
            )
            if "covariance" not in wanted:
                yield rows, chunk
                continue
            for few in _batches(len(batch), max(1, MEMORY_BUDGET // (32 * chunk.logits.shape[1] ** 2))):
                these = slice(rows.start + few.start, rows.start + few.stop)
                covariance = self._asked(
                    cast(Posterior, self.posterior).logit_covariance, batch[few], name, these
                )
                yield these, replace(chunk.rows(few), covariance=covariance)

    def draws(
        self, sets: Mapping[str, tuple[Tensor, int]], n: int, classes: int
    ) -> Iterator[tuple[str, slice, Tensor]]:
        """Chunks (set, its images, draws (S, B, C)) that together hold n draws of every image of every set.

        The blocks are the outer loop, so that a posterior may keep the functions it drew last.
        """
        self.checked(["draws"])
        posterior = cast(Posterior, self.posterior)
        most_draws = SAMPLE_BLOCK if posterior.joint_over_images() else n
        for block, start in enumerate(range(0, n, most_draws)):
            size = min(most_draws, n - start)
            most = min(self.batch_size, max(1, MEMORY_BUDGET // (32 * size * classes)))
            for name, (inputs, count) in sets.items():
                for rows in _batches(count, most):
                    generator = torch.Generator().manual_seed(block_seed(self.seed, block))
                    draw = partial(posterior.logit_samples, n=size, generator=generator)
                    drawn = self._asked(draw, self._batch(inputs, rows), name, rows, plain=False)
                    yield name, rows, drawn.cpu()

    def _frozen(self, batch: Tensor, wanted: set[Need], name: str, rows: slice) -> dict[str, Tensor]:
        """What the frozen backbone knows: one pass through it serves both."""
        if not wanted & {"zeroshot", "features"}:
            return {}
        model = cast(Adapter, self.model)
        features = self._asked(model.frozen_features, batch, name, rows, plain=False)
        found = {"features": features.cpu().double()} if "features" in wanted else {}
        if "zeroshot" in wanted:
            found["zeroshot"] = self._asked(model.zeroshot_logits, features, name, rows)
        return found

    def _batch(self, inputs: Tensor, rows: slice) -> Tensor:
        batch = inputs[rows]
        return batch if self._device is None else batch.to(self._device)

    def _asked(self, ask: Model, batch: Tensor, name: str, rows: slice, plain: bool = True) -> Tensor:
        """The answer, in float64 on the CPU or (not plain) as it comes."""
        try:
            with evaluation_mode(self.model):
                answer = ask(batch).detach()
        except NotImplementedError as error:
            raise ConfigError(f"{error}, which this predictive needs; choose another predictive") from error
        answer = answer.cpu().double() if plain else answer
        if not torch.isfinite(answer.sum()) and (count := int((~torch.isfinite(answer)).sum())):
            raise FloatingPointError(
                f"{count} values of set {name!r} are not finite (images {rows.start}…{rows.stop - 1}): "
                "the training diverged, or the inputs are broken"
            )
        return answer


def block_seed(seed: int, block: int) -> int:
    """The 60-bit generator seed of a block of draws, the same on every machine."""
    return int(digest("clipkal logit draws", str(seed), str(block))[:15], 16)


def _batches(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """Without gradients, and in evaluation mode where the model is a module; its mode is restored afterwards."""
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if isinstance(model, nn.Module):
            model.train(training)
