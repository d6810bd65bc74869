"""Batch norm statistics computed anew on calibration data, for a treated model.

The statistics of a trained network belong to features that a treatment has changed; recalibration tells whether that
alone is what a treated network suffers from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from analysis.perturb import Places, uninterrupted
from surgeon.errors import AnalysisError

Norm = nn.modules.batchnorm._BatchNorm


@contextmanager
def recalibrated(places: Places, modules: Sequence[nn.Module], run: Callable[[], int]) -> Iterator[None]:
    """Inside the block, batch norms among ``modules`` have the mean statistics of the calibration batches.

    Args:
        places: Of the model's tensors.
        modules: Those whose statistics count; the others keep theirs.
        run: Runs the model over the calibration batches; answers their number, at least one.

    Raises:
        AnalysisError: When there is no calibration batch.
    """
    norms = [module for module in modules if isinstance(module, Norm) and module.running_mean is not None]
    names = {id(tensor): name for name, tensor in places.tensors.items()}
    fresh: dict[str, Tensor] = {}
    for norm in norms:
        for buffer, value in ((norm.running_mean, 0), (norm.running_var, 1), (norm.num_batches_tracked, 0)):
            if buffer is not None and id(buffer) in names:
                fresh[names[id(buffer)]] = torch.full_like(buffer, value)
    with places.replaced(fresh):
        if norms:
            momenta = [norm.momentum for norm in norms]
            try:
                for norm in norms:
                    norm.training, norm.momentum = True, None  # None: the mean over all batches
                if not run():
                    raise AnalysisError("calibration holds no batch; give some training images")
            finally:
                with uninterrupted():
                    for norm, momentum in zip(norms, momenta, strict=True):
                        norm.training, norm.momentum = False, momentum
        yield
