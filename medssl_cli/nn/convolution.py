"""A 2D convolution whose kernel gradient is a matrix product where that is faster on a CPU.

The gradient of a kernel, dL/dW[o, c, i, j] = sum over images and places of dL/dy[o, p, q] x[c, sp + i, sq + j] with the
stride s, is a product of two matrices. The library's own kernels for it fall to a tenth of the speed of a product where
maps are small and channels many, as in the late levels of a ResNet. Values differ by the order of summation only.

Shapes: B batch, C channels, X Y pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, with the same parameters and values; only training in float32 on a CPU takes another way."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None or not _is_trained_here(input, weight) or not self._is_product_faster(input):
            return super()._conv_forward(input, weight, bias)
        stride = self.stride[0]
        if self.kernel_size[0] == 1 and stride > 1 and not self.padding[0]:
            # Of the pixels that such a kernel skips, nothing needs to be computed.
            input, stride = input[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last), 1
        return _Convolution.apply(input, weight, stride, self.padding[0])

    def _is_product_faster(self, images: Tensor) -> bool:
        """Whether copying the patches under a kernel costs less than the library's own way loses; measured."""
        edge, stride, padding = self.kernel_size[0], self.stride[0], self.padding[0]
        is_square = all(len({*pair}) == 1 for pair in (self.kernel_size, self.stride, self.padding))
        if not is_square or isinstance(padding, str) or self.groups != 1 or self.dilation != (1, 1):
            return False
        if self.padding_mode != "zeros":
            return False
        height, width = ((side + 2 * padding - edge) // stride + 1 for side in images.shape[2:])
        return edge == 1 or height * width <= self.in_channels


def kernel_gradient(gradient: Tensor, images: Tensor, edge: int, stride: int, padding: int) -> Tensor:
    """The gradient of a convolution's kernel, as one matrix product.

    Args:
        gradient: [B, C_out, X_out, Y_out] of the output.
        images: [B, C_in, X, Y], the input.
        edge: Of the kernel.
        stride: Of the kernel.
        padding: Zeros on each side of the input.

    Returns:
        [C_out, C_in, edge, edge].
    """
    pixels = images.permute(0, 2, 3, 1).contiguous()
    if padding:
        pixels = F.pad(pixels, (0, 0, padding, padding, padding, padding))
    batch, channels_out, height, width = gradient.shape
    over_batch, over_rows, over_columns, over_channels = pixels.stride()
    patches = pixels.as_strided(
        (batch, height, width, edge, edge, images.shape[1]),
        (over_batch, stride * over_rows, stride * over_columns, over_rows, over_columns, over_channels),
    )
    rows = gradient.permute(0, 2, 3, 1).reshape(-1, channels_out)
    product = rows.T @ patches.reshape(len(rows), -1)
    return product.view(channels_out, edge, edge, -1).permute(0, 3, 1, 2)


def _is_trained_here(images: Tensor, kernel: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and kernel.requires_grad
        and images.device.type == "cpu"
        and images.dtype == kernel.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(images, kernel)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(images, kernel, stride=stride, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        images, kernel = ctx.saved_tensors
        of_images = of_kernel = None
        if ctx.needs_input_grad[0]:
            pairs = [[value, value] for value in (ctx.stride, ctx.padding, 1)]
            of_images, _, _ = torch.ops.aten.convolution_backward(
                gradient, images, kernel, None, *pairs, False, [0, 0], 1, [True, False, False]
            )
        if ctx.needs_input_grad[1]:
            of_kernel = kernel_gradient(gradient, images, kernel.shape[-1], ctx.stride, ctx.padding)
        return of_images, of_kernel, None, None
