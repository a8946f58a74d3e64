"""Figures of the paper that follow from the sizes alone; named in paper.yaml. All of it works on `meta`."""

from typing import Any

import numpy as np
import torch
from torch import nn

from common.fast.flops import multiply_adds
from papers.nmc_continual import streams
from papers.nmc_continual.data import preprocessing, split_tasks
from papers.nmc_continual.model import NearestMean, SharedCovariance, vit_base_patch16_224_in21k
from papers.nmc_continual.module import NMC

CIFAR100_IMAGES = 60_000
"""Training and test images, each of which passes the encoder once."""


def learner() -> NMC:
    """The paper's learner on Split-CIFAR-100."""
    return NMC(vit_base_patch16_224_in21k(), num_classes=100, num_tasks=streams.TASKS)


def linear_head() -> nn.Linear:
    """A linear classifier in the place of the class means."""
    return nn.Linear(768, 100)


def stored_numbers(num_classes: int, dim: int = 768) -> int:
    """What the classifier remembers: a sum of `dim` numbers and a count a class."""
    return sum(buffer.numel() for buffer in NearestMean(dim, num_classes).buffers())


def stored_numbers_lda(num_classes: int, dim: int = 768) -> int:
    """With the sum of outer products that the shared-covariance variant adds."""
    return sum(buffer.numel() for buffer in SharedCovariance(dim, num_classes).buffers())


def image_tokens() -> int:
    """Tokens of the encoder at 224 px, class token included."""
    return vit_base_patch16_224_in21k().positions.shape[0]


def encoder_multiply_adds() -> int:
    """Of one 224 px image, every token through every block (only the class token leaves the last one: see below)."""
    return multiply_adds(vit_base_patch16_224_in21k().tokens, torch.empty(1, 3, 224, 224))


def encoder_multiply_adds_used() -> int:
    """Of the forward pass as it is computed here: queries and MLP of the last block for the class token alone."""
    return multiply_adds(vit_base_patch16_224_in21k(), torch.empty(1, 3, 224, 224))


def lookup_multiply_adds(num_classes: int = 100, dim: int = 768) -> int:
    """Of comparing one feature with all class means."""
    return multiply_adds(torch.matmul, torch.empty(1, dim), torch.empty(dim, num_classes))


def stream_multiply_adds() -> int:
    """Of the whole of Split-CIFAR-100, each training and test image once."""
    return CIFAR100_IMAGES * encoder_multiply_adds()


def num_tasks(dataset: str) -> int:
    """Tasks of 'cifar100' or 'imagenet_r'; 'core50': training sessions."""
    return len(streams.CORE50_TRAIN) if dataset == "core50" else streams.TASKS


def classes_a_task(dataset: str) -> int:
    """New classes in every task of 'cifar100' or 'imagenet_r'."""
    return streams.CLASSES_A_TASK[dataset]


def core50_classes() -> int:
    """CORe50's objects: ten categories of five."""
    return streams.CORE50_CLASSES


def core50_test_sessions() -> int:
    """Sessions that are only tested."""
    return len(streams.CORE50_TEST)


def class_at(position: int) -> int:
    """The class that comes at a position of Split-CIFAR-100's order."""
    return streams.CIFAR100_ORDER[position]


def core50_sessions() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Training and test sessions of CORe50."""
    return streams.CORE50_TRAIN, streams.CORE50_TEST


def imagenet_r_split() -> tuple[float, int]:
    """Share of a task's images that train, and the seed that draws them."""
    kept, held_out = split_tasks(np.repeat(np.arange(20), 10), 20)
    return len(kept) / (len(kept) + len(held_out)), streams.IMAGENET_R_SEED


def short_side() -> int:
    """To which folder sets are resized before the crop."""
    steps: Any = preprocessing("crop", normalise=False)
    return steps.transforms[0].size[0]
