"""CompressAI's entropy bottleneck. The only module that imports compressai."""

from typing import Any

import torch
from torch import Tensor, nn

from vcinr_batch.errors import ConfigError


def standard_bottleneck(channels: int) -> nn.Module:
    """An `EntropyBottleneck` whose distributions start as logistics of mean 0 and standard deviation 1.

    Raises:
        ConfigError: compressai is not installed or does not work here.
    """
    bottleneck = _entropy_bottleneck_class()(channels, init_scale=_LOGISTIC_SCALE)
    with torch.no_grad():
        # Random biases tell the filters apart; their sum must not move the median.
        bottleneck.biases[-1] -= cumulative_logits(bottleneck, torch.zeros(1, channels)).T[:, :, None]
    assert isinstance(bottleneck, nn.Module)
    return bottleneck


def cumulative_logits(bottleneck: Any, x: Tensor) -> Tensor:
    """Logit of each channel's cumulative distribution: x [N, C] -> [N, C]."""
    logits: Tensor = bottleneck._logits_cumulative(x.T[:, None, :], stop_gradient=False)
    return logits[:, 0, :].T


# Scale of a logistic distribution with standard deviation 1.
_LOGISTIC_SCALE = 3**0.5 / torch.pi


def _entropy_bottleneck_class() -> Any:
    try:
        _make_torchvision_importable()
        from compressai.entropy_models import EntropyBottleneck
    except ImportError as error:
        raise ConfigError(f"training a codec needs compressai ({error}): pip install 'vcinr-batch[train]'") from error
    return EntropyBottleneck


def _make_torchvision_importable() -> None:
    """compressai imports torchvision, whose compiled operators do not load beside a CPU build of torch.

    Nothing here calls them; torchvision only attaches shape functions to two of them. Declaring these two is enough.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                torch.library.define(
                    f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
