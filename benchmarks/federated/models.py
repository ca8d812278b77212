"""The networks that are trained."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn


def build(name: str, shape: tuple[int, int, int], n_classes: int, seed: int) -> nn.Module:
    """A network for images of ``shape`` (channels, height, width) with weights drawn by ``seed``.

    Raises:
        ValueError: No network has that name.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r}: must be one of {', '.join(MODELS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name](shape, n_classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None  # unused with a momentum, so it need not be sent
    return model


def resfed_cnn(shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """The CNN of Song et al., arXiv:2212.05602: 1,020,160 parameters for CIFAR-10, 4.08 MB.

    Layers as in the paper's public code (rruisong/ResFed): five convolutions 3 x 3, BatchNorm on
    the last four, pooling after the second, the third and the fifth.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = shape[0]
    for i, (out, pools) in enumerate(
        [(32, False), (64, True), (128, True), (256, False), (256, True)]
    ):
        layers[f"conv{i}"] = nn.Conv2d(width, out, 3, padding=1, bias=i == 0)
        if i:
            layers[f"norm{i}"] = nn.BatchNorm2d(out)
        layers[f"relu{i}"] = nn.ReLU()
        if pools:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        width = out
    layers["flat"] = nn.Flatten()
    layers["fc"] = nn.Linear(width * (shape[1] // 8) * (shape[2] // 8), n_classes, bias=False)
    return nn.Sequential(layers)


def lenet5(shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling."""
    height, width = (((side - 4) // 2 - 4) // 2 for side in shape[1:])
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv0=nn.Conv2d(shape[0], 6, 5),
            relu0=nn.ReLU(),
            pool0=nn.MaxPool2d(2),
            conv1=nn.Conv2d(6, 16, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            flat=nn.Flatten(),
            fc0=nn.Linear(16 * height * width, 120),
            relu2=nn.ReLU(),
            fc1=nn.Linear(120, 84),
            relu3=nn.ReLU(),
            fc2=nn.Linear(84, n_classes),
        )
    )


def groupnorm_cnn(shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """157k parameters for CIFAR-10, fast on a CPU: strided convolutions instead of pooling."""
    return _strided(shape, n_classes, (5, 3, 3), (32, 64, 184))


def batchnorm_cnn(shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """groupnorm_cnn with BatchNorm instead of GroupNorm."""
    return _strided(shape, n_classes, (5, 3, 3), (32, 64, 184), norm=nn.BatchNorm2d)


def tiny_cnn(shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """The same for digits: 8 x 8 pixels, 9k parameters."""
    return _strided(shape, n_classes, (3, 3), (16, 48))


def _eight_groups(channels: int) -> nn.Module:
    return nn.GroupNorm(8, channels)


def _strided(
    shape: tuple[int, int, int],
    n_classes: int,
    kernels: tuple[int, ...],
    widths: tuple[int, ...],
    norm: Callable[[int], nn.Module] = _eight_groups,
) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = shape[0]
    for i, (kernel, out) in enumerate(zip(kernels, widths, strict=True)):
        layers[f"conv{i}"] = nn.Conv2d(width, out, kernel, stride=2, padding=kernel // 2)
        layers[f"norm{i}"] = norm(out)
        layers[f"relu{i}"] = nn.ReLU()
        width = out
    layers["flat"] = nn.Flatten()
    scale = 2 ** len(kernels)
    layers["fc"] = nn.Linear(width * (shape[1] // scale) * (shape[2] // scale), n_classes)
    return nn.Sequential(layers)


MODELS = {
    "resfed_cnn": resfed_cnn,
    "lenet5": lenet5,
    "groupnorm_cnn": groupnorm_cnn,
    "batchnorm_cnn": batchnorm_cnn,
    "tiny_cnn": tiny_cnn,
}
