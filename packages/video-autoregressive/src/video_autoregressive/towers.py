"""What teachers need of an encoder: a frozen copy, a hash of its weights, eval mode for a while."""

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps its hooks (and beside each a table of options, which may stay)."""
HOOKED_MARK = "_output_capturing_hooks_installed"
"""transformers' mark of a model that has its hooks; without it they are installed at the next forward."""


def is_trained(tower: nn.Module) -> bool:
    """Whether any of its parameters asks for a gradient."""
    return any(parameter.requires_grad for parameter in tower.parameters())


@contextmanager
def evaluating(tower: nn.Module) -> Generator[None]:
    """Put a module in eval mode, and every part of it back into its own afterwards."""
    modes = [(module, module.training) for module in tower.modules()]
    tower.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def frozen_copy(tower: nn.Module) -> nn.Module:
    """A copy with the same dtype and device that is never trained and has no hooks.

    Hooks stay behind since they speak for the original: one bound to the model around the tower would copy the model.

    Raises:
        ValueError: Weights are partitioned, or not there yet.
    """
    check_whole(tower)
    modules = list(tower.modules())
    hooks = [{name: vars(module)[name] for name in HOOKS} for module in modules]
    try:
        for module in modules:
            vars(module).update({name: OrderedDict() for name in HOOKS})
        twin = copy.deepcopy(tower)
    finally:
        for module, own in zip(modules, hooks, strict=True):
            vars(module).update(own)
    for module in twin.modules():
        vars(module).pop(HOOKED_MARK, None)
    return twin.requires_grad_(False).eval()


def check_whole(tower: nn.Module) -> None:
    """Refuse a tower whose weights are elsewhere.

    Raises:
        ValueError: A parameter is empty (ZeRO-3 keeps a part of it on every rank) or on the meta device.
    """
    for name, parameter in tower.named_parameters():
        if parameter.numel() == 0:
            raise ValueError(
                f"{type(tower).__name__}: weight {name!r} has shape {tuple(parameter.shape)}, as under ZeRO-3; take "
                "the snapshot before the engine wraps the model, or within deepspeed.zero.GatheredParameters"
            )
        if parameter.is_meta:
            raise ValueError(f"{type(tower).__name__}: weight {name!r} is on the meta device; load the weights first")


def weights_hash(tower: nn.Module) -> str:
    """Hash of all parameters and buffers that are saved: names, types, shapes and bits.

    Raises:
        ValueError: Weights are partitioned.
    """
    check_whole(tower)
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
