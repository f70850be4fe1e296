"""Random generators that are a pure function of (seed, epoch, index).

A dataset that draws everything from such a generator gives the same sample in every run, on every rank, with any
number of workers, and after a resume; one that draws from the global generators does not. The three numbers go
through a hash, so neighbouring samples share nothing.
"""

import hashlib
from operator import index as as_int
from typing import SupportsIndex

import numpy as np
import torch


def sample_rng(seed: SupportsIndex, epoch: SupportsIndex, index: SupportsIndex) -> np.random.Generator:
    """Return the NumPy generator of one sample of one epoch."""
    return np.random.Generator(np.random.PCG64(_mix(seed, epoch, index)))


def sample_generator(seed: SupportsIndex, epoch: SupportsIndex, index: SupportsIndex) -> torch.Generator:
    """Return the torch generator (CPU) of one sample of one epoch.

    Torch keeps 32 bits of a seed for its CPU generator, so among millions of samples a few share their draws; where
    that matters use `sample_rng`.
    """
    return torch.Generator().manual_seed(_mix(seed, epoch, index) & 0xFFFF_FFFF)


def _mix(seed: SupportsIndex, epoch: SupportsIndex, index: SupportsIndex) -> int:
    """Hash the three numbers to 128 bits; the separators keep (1, 23) and (12, 3) apart."""
    digest = hashlib.blake2b(f"{as_int(seed)},{as_int(epoch)},{as_int(index)}".encode(), digest_size=16)
    return int.from_bytes(digest.digest(), "little")
