"""Layer-wise adaptive rates for large batches.

You et al., Large Batch Training of Convolutional Networks, https://arxiv.org/abs/1708.03888
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor


class Lars(torch.optim.Optimizer):
    """SGD with momentum on gradients that are scaled to a fraction of their parameter's length.

    For a parameter p with the gradient g: a = trust |p| / (|g| + decay |p| + eps), u = a (g + decay p),
    v <- momentum v + u, p <- p - rate v. A parameter or gradient of length 0 gives u = g.

    So is NVIDIA Apex's LARC around SGD, which the released SwAV and DeepCluster-V2 use on all parameters. The paper's
    momentum runs over rate times u instead, which is the same while the rate is.

    A parameter group with `is_adapted: False` gets u = g + decay p: some recipes leave norms and biases out.

    Args:
        params: Parameters or groups of them.
        lr: Rate.
        momentum: Momentum in [0, 1).
        weight_decay: Decay.
        trust: Share of its length that a parameter moves per step at rate 1.
        clip: Never scale up past plain SGD: a becomes min(a / rate, 1). Apex's default, and off in SwAV.
        eps: Guards the division.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        clip: bool = False,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "clip": clip,
            "eps": eps,
            "is_adapted": True,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move all parameters that have a gradient.

        Args:
            closure: Computes the loss and its gradients anew.

        Returns:
            The loss of the closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            if learning:
                self._move(learning, [parameter.grad for parameter in learning], group)
        return loss

    def _move(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        factors, decays = _shares(parameters, gradients, group)
        torch._foreach_mul_(buffers, group["momentum"])
        for parameter, gradient, buffer, factor, decay in zip(
            parameters, gradients, buffers, factors, decays, strict=True
        ):
            buffer.addcmul_(gradient, factor).addcmul_(parameter, decay)
        torch._foreach_add_(parameters, buffers, alpha=-group["lr"])


def _shares(
    parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Factors a and a decay of the update u = a g + a decay p of each parameter; the device is not waited for."""
    lengths, slopes = (torch.stack(torch._foreach_norm(each)) for each in (parameters, gradients))
    decay = torch.full_like(lengths, group["weight_decay"])
    if not group["is_adapted"]:
        return torch.ones_like(lengths).unbind(), decay.unbind()
    factors = group["trust"] * lengths / (slopes + decay * lengths + group["eps"])
    if group["clip"]:
        factors = (factors / group["lr"]).clamp(max=1.0)
    has_length = (lengths > 0) & (slopes > 0)
    factors, decay = torch.where(has_length, factors, 1.0), torch.where(has_length, decay, 0.0)
    return factors.unbind(), (factors * decay).unbind()
