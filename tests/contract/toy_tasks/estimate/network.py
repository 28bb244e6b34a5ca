"""The network of the toy task: a linear layer on the embedding."""

from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F

from medssl_cli.base.strict import Strict
from medssl_cli.nn.backbones import Backbone
from medssl_cli.tasks import ClassName, TaskLosses, TaskNetwork


class EstimateOptions(Strict):
    """What to estimate.

    Args:
        label_set: Name of the set of findings in the cache.
        classes: Findings whose values are the numbers.
    """

    label_set: str
    classes: tuple[ClassName, ...]


class EstimateNetwork(nn.Module, TaskNetwork):
    """A backbone with a linear layer on its embedding."""

    def __init__(self, backbone: Backbone, options: EstimateOptions) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.embedding_dim, len(options.classes))

    def forward(self, images: Tensor) -> Tensor:
        numbers: Tensor = self.head(self.backbone.embed(images))
        return numbers

    def loss(self, logits: Tensor, targets: Tensor) -> TaskLosses:
        error = F.mse_loss(logits.float(), targets)
        return TaskLosses(error, {"squared_error": error})


OPTIONS: Final = EstimateOptions
NETWORK: Final = EstimateNetwork
