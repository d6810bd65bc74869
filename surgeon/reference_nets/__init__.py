"""Small networks and published variants that timm does not hold, registered with it when `surgeon` is imported.

A package of its own so that the operating code never depends on any particular network.
"""

from surgeon.reference_nets import (
    digits,
    digits_vgg,
    digits_vgg_flat,
    fcn,
    fenet,
    preact,
    resnet_cifar,
    shiftresnet,
    vgg,
)

__all__ = ["digits", "digits_vgg", "digits_vgg_flat", "fcn", "fenet", "preact", "resnet_cifar", "shiftresnet", "vgg"]
