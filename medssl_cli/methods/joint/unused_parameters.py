"""Parameters that a step does not use, where all processes must have a gradient for every parameter."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class UnusedParameters:
    """Gives what a step does not use a gradient of zero, as distributed training needs, and takes it away afterwards.

    A gradient of zero would still let an optimiser decay a parameter, or move it by its momentum. Parameters are known
    by their names: those of which a process keeps a part only (FSDP) are other tensors while the loss is computed.

    Args:
        module: Module with all parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parameters = module.named_parameters
        self._used: set[str] = set()

    def zero(self, used: Iterable[nn.Module]) -> Tensor | float:
        """Zero that depends on all parameters of the module that are not in these modules.

        Args:
            used: Modules that are used by the loss that this is added to.
        """
        now = {id(parameter) for module in used for parameter in module.parameters()}
        everything = list(self._parameters())
        self._used.update(name for name, each in everything if id(each) in now)
        others = [each for _, each in everything if each.requires_grad and id(each) not in now]
        return 0.0 * torch.stack([each.sum() for each in others]).sum() if others else 0.0

    def drop_gradients(self) -> None:
        """Forget the gradients of what no loss has used since the last call."""
        for name, parameter in self._parameters():
            if name not in self._used:
                parameter.grad = None
        self._used.clear()
