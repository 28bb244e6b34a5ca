"""Changes of an image's tones that keep its range: contrast about its mean, gamma of the inverted image.

Two of nnU-Net's augmentations (Isensee et al., Nature Methods 2021, https://doi.org/10.1038/s41592-020-01008-z).

Shapes: N images, C channels, X Y Z space.
"""

from torch import Tensor

PLACES = (2, 3, 4)
LEAST_SPAN = 1e-6


def change_contrast_(images: Tensor, factors: Tensor) -> Tensor:
    """Stretch values about the mean of each channel, in place; what leaves the channel's range is cut off.

    Args:
        images: [N, C, X, Y, Z].
        factors: 1 for as they are, [N].

    Returns:
        The images.
    """
    low, high = images.amin(dim=PLACES, keepdim=True), images.amax(dim=PLACES, keepdim=True)
    mean = images.mean(dim=PLACES, keepdim=True)
    stretched = images.sub_(mean).mul_(_per_image(factors, images)).add_(mean)
    return stretched.clamp_(low, high)


def invert_gamma_(images: Tensor, exponents: Tensor) -> Tensor:
    """Gamma of the inverted image, which is inverted back, in place: above 1, bright tones spread.

    Args:
        images: [N, C, X, Y, Z].
        exponents: 1 for as they are, [N].

    Returns:
        The images.
    """
    high = images.amax(dim=PLACES, keepdim=True)
    span = (high - images.amin(dim=PLACES, keepdim=True)).clamp_min(LEAST_SPAN)
    inverted = images.neg_().add_(high).div_(span).clamp_(0, 1)
    return inverted.pow_(_per_image(exponents, images)).mul_(span).neg_().add_(high)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images)[:, None, None, None, None]
