"""Logits, their posterior draws and covariances for whole sets, batch by batch within a memory budget.

Random numbers: draws come in blocks of `SAMPLE_BLOCK`, and block k always uses a fresh CPU generator seeded
with digest(seed, k), for every batch of every set. So a posterior that draws parameters (or functions) from
the generator gives each image the same draws however the images are batched, and all sets are seen by the
same drawn models. One that draws each image's logits independently is asked for all draws of an image at once; it is
as reproducible, but its draws depend on the batches.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clipkal.errors import ConfigError
from clipkal.files import digest
from clipkal.optim.posterior import Posterior

SAMPLE_BLOCK = 16
MEMORY_BUDGET = 2**29
"""Bytes that one block of logit draws (with its softmax), or one chunk of covariances, may take."""

Model = Callable[[Tensor], Tensor]
"""Inputs (B, …) to logits (B, C)."""


class Predictor:
    """A model and its posterior, asked for whole sets. All results are on the CPU and finite, in the precision they come in.

    Args:
        model: inputs (B, …) -> logits (B, C).
        posterior: for `draws` and `moments`.
        n_samples: draws an image.
        seed: which draws.
        batch_size: most images a call.
    """

    def __init__(
        self,
        model: Model,
        posterior: Posterior | None = None,
        n_samples: int = 64,
        seed: int = 0,
        batch_size: int = 1024,
    ) -> None:
        self.model, self.posterior = model, posterior
        self.n_samples, self.seed, self.batch_size = n_samples, seed, batch_size
        first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        self._device = first.device if first is not None else None

    def logits(self, inputs: Tensor, count: int, name: str) -> Tensor:
        """Logits of `count` images, (N, C)."""
        return torch.cat(
            [
                self._checked(self.model(self._batch(inputs, rows)), name, rows)
                for rows in _batches(count, self.batch_size)
            ]
        )

    def classes(self, inputs: Tensor, name: str) -> int:
        """C, from the logits of the first image."""
        return self.logits(inputs, 1, name).shape[1]

    def draws(
        self, sets: Mapping[str, tuple[Tensor, int]], classes: int
    ) -> Iterator[tuple[str, slice, Tensor]]:
        """Chunks (set, its images, draws (S, B, C)) that together hold n_samples draws of every image of every set.

        The blocks are the outer loop, so that a posterior may keep the functions it drew last.
        """
        assert self.posterior is not None
        most_draws = SAMPLE_BLOCK if self.posterior.joint_over_images() else self.n_samples
        for block, start in enumerate(range(0, self.n_samples, most_draws)):
            size = min(most_draws, self.n_samples - start)
            most = min(self.batch_size, max(1, MEMORY_BUDGET // (32 * size * classes)))
            for name, (inputs, count) in sets.items():
                for rows in _batches(count, most):
                    generator = torch.Generator().manual_seed(block_seed(self.seed, block))
                    chunk = self.posterior.logit_samples(self._batch(inputs, rows), size, generator)
                    yield name, rows, self._checked(chunk, name, rows)

    def moments(self, inputs: Tensor, count: int, classes: int, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of the logits (B, C) and their posterior covariance (B, C, C), image by image.

        Raises ConfigError for a posterior that can only be sampled.
        """
        assert self.posterior is not None
        most = min(self.batch_size, max(1, MEMORY_BUDGET // (32 * classes**2)))
        for rows in _batches(count, most):
            batch = self._batch(inputs, rows)
            try:
                covariance = self.posterior.logit_covariance(batch)
            except NotImplementedError as error:
                raise ConfigError(
                    f"predictive 'probit' needs the logit covariance: {error}; choose sampled"
                ) from error
            yield self._checked(self.model(batch), name, rows), self._checked(covariance, name, rows)

    def _batch(self, inputs: Tensor, rows: slice) -> Tensor:
        batch = inputs[rows]
        return batch if self._device is None else batch.to(self._device)

    def _checked(self, logits: Tensor, name: str, rows: slice) -> Tensor:
        logits = logits.detach().cpu()
        if not torch.isfinite(logits.sum()) and (count := int((~torch.isfinite(logits)).sum())):
            raise FloatingPointError(
                f"{count} logits of set {name!r} are not finite (images {rows.start}…{rows.stop - 1}): "
                "the training diverged, or the inputs are broken"
            )
        return logits


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
