"""A 2D convolution that is computed as matrix products where that is faster on a CPU: small maps of many channels.

With the patches under a kernel as rows, y = patches K^T is a product of two matrices, and so are the gradients
dL/dK = dL/dy^T patches and dL/dpatches = dL/dy K, whose overlapping parts are added. The library's own kernels fall to
a third of the speed of a product, and for dL/dK to a tenth, in the late levels of a ResNet. Values differ by the order
of summation only.

Shapes: B batch, C channels, X Y pixels, E edge of a kernel.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Where all three products are faster: measured with AVX2, AVX-512 and AMX.
FEW_PIXELS: Final = 9
MANY_CHANNELS: Final = 256


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, with the same parameters and values; only training on a CPU takes another way.

    That is training in float32, and under autocast to bfloat16 where the CPU has products of such matrices (AMX).
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        precision = _precision_here(input, weight)
        if bias is not None or precision is None or not self._is_plain():
            return super()._conv_forward(input, weight, bias)
        input, weight = input.to(precision), weight.to(precision)
        edge, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        height, width = ((side + 2 * padding - edge) // stride + 1 for side in input.shape[2:])
        # Of the pixels that a kernel of one pixel skips, nothing needs to be computed.
        is_sparse = edge == 1 and stride > 1
        is_small = height * width <= FEW_PIXELS and min(weight.shape[:2]) >= MANY_CHANNELS
        if is_sparse or is_small:
            return _Convolution.apply(input, weight, stride, padding, True)
        if not _is_gradient_faster(edge, height * width, self.in_channels):
            return super()._conv_forward(input, weight, bias)
        return _Convolution.apply(input, weight, stride, padding, False)

    def _is_plain(self) -> bool:
        is_square = all(len({*pair}) == 1 for pair in (self.kernel_size, self.stride, self.padding))
        is_zero_padded = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        return is_square and is_zero_padded and self.groups == 1 and self.dilation == (1, 1)


def convolve(images: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    """A convolution as one product of matrices.

    Args:
        images: [B, C_in, X, Y].
        kernel: [C_out, C_in, E, E].
        stride: Of the kernel.
        padding: Zeros on each side of the images.

    Returns:
        [B, C_out, X', Y'].
    """
    under = patches(images, kernel.shape[-1], stride, padding)
    product = under.flatten(3).flatten(0, 2) @ _rows(kernel).T
    return product.unflatten(0, under.shape[:3]).permute(0, 3, 1, 2)


def kernel_gradient(gradient: Tensor, images: Tensor, edge: int, stride: int, padding: int) -> Tensor:
    """The gradient of a convolution's kernel, as one product of matrices.

    Args:
        gradient: [B, C_out, X', Y'] of the output.
        images: [B, C_in, X, Y], the input.
        edge: Of the kernel.
        stride: Of the kernel.
        padding: Zeros on each side of the input.

    Returns:
        [C_out, C_in, E, E].
    """
    under = patches(images, edge, stride, padding).flatten(3).flatten(0, 2)
    product = _pixels(gradient).flatten(0, 2).T @ under
    return product.view(gradient.shape[1], edge, edge, -1).permute(0, 3, 1, 2)


def image_gradient(gradient: Tensor, kernel: Tensor, size: tuple[int, int], stride: int, padding: int) -> Tensor:
    """The gradient of a convolution's input, as one product of matrices whose overlapping parts are added.

    Args:
        gradient: [B, C_out, X', Y'] of the output.
        kernel: [C_out, C_in, E, E].
        size: X and Y of the input.
        stride: Of the kernel.
        padding: Zeros on each side of the input.

    Returns:
        [B, C_in, X, Y].
    """
    batch, _, height, width = gradient.shape
    edge = kernel.shape[-1]
    under = (_pixels(gradient).flatten(0, 2) @ _rows(kernel)).view(batch, height, width, edge, edge, -1)
    sums = torch.promote_types(gradient.dtype, torch.float32)
    padded = torch.zeros(batch, *(side + 2 * padding for side in size), kernel.shape[1], dtype=sums)
    for row in range(edge):
        for column in range(edge):
            rows, columns = (slice(at, at + stride * (n - 1) + 1, stride) for at, n in ((row, height), (column, width)))
            padded[:, rows, columns] += under[:, :, :, row, column]
    inside = padded[:, padding : padding + size[0], padding : padding + size[1]]
    return inside.to(gradient.dtype).contiguous().permute(0, 3, 1, 2)


def patches(images: Tensor, edge: int, stride: int, padding: int) -> Tensor:
    """What a kernel sees at each of its places in images [B, C, X, Y]: a view [B, X', Y', E, E, C]."""
    pixels = _pixels(images)
    if padding:
        pixels = F.pad(pixels, (0, 0, padding, padding, padding, padding))
    return pixels.unfold(1, edge, stride).unfold(2, edge, stride).permute(0, 1, 2, 4, 5, 3)


def _pixels(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).contiguous()


def _rows(kernel: Tensor) -> Tensor:
    return kernel.permute(0, 2, 3, 1).flatten(1)


def _precision_here(images: Tensor, kernel: Tensor) -> torch.dtype | None:
    """Of the products; None where the library's way is taken."""
    is_trained_here = torch.is_grad_enabled() and kernel.requires_grad and images.device.type == "cpu"
    if not is_trained_here or torch.compiler.is_compiling():
        return None
    if torch.is_autocast_enabled("cpu"):
        precision = torch.get_autocast_dtype("cpu")
        return precision if precision == torch.bfloat16 and torch.cpu._is_amx_tile_supported() else None
    return torch.float32 if images.dtype == kernel.dtype == torch.float32 else None


def _is_gradient_faster(edge: int, num_pixels: int, num_channels: int) -> bool:
    """Whether dL/dK alone gains; measured. The library's own kernels for AVX-512 are better than those for AVX2."""
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return num_pixels * 8 <= num_channels
    return edge == 1 or num_pixels <= num_channels


class _Convolution(torch.autograd.Function):
    """The library's convolution with our gradient of the kernel; or products of matrices throughout."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernel: Tensor, stride: int, padding: int, are_products: bool) -> Tensor:
        ctx.save_for_backward(images, kernel)
        ctx.stride, ctx.padding, ctx.are_products = stride, padding, are_products
        if are_products:
            return convolve(images, kernel, stride, padding)
        return F.conv2d(images, kernel, stride=stride, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        images, kernel = ctx.saved_tensors
        of_images = of_kernel = None
        if ctx.needs_input_grad[0] and ctx.are_products:
            size = images.shape[2], images.shape[3]
            of_images = image_gradient(gradient, kernel, size, ctx.stride, ctx.padding)
        elif ctx.needs_input_grad[0]:
            pairs = [[value, value] for value in (ctx.stride, ctx.padding, 1)]
            of_images, _, _ = torch.ops.aten.convolution_backward(
                gradient, images, kernel, None, *pairs, False, [0, 0], 1, [True, False, False]
            )
        if ctx.needs_input_grad[1]:
            of_kernel = kernel_gradient(gradient, images, kernel.shape[-1], ctx.stride, ctx.padding)
        return of_images, of_kernel, None, None, None
