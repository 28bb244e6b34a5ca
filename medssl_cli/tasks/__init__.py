"""Downstream tasks, one folder each, and the one protocol through which all other rooms meet them.

A task is found by the name of its folder, which holds:

    __init__.py   FIGURE sums up scores; HEAD: what networks answer with; UNLABELLED: `tasks.unlabelled`; loads no more
    network.py    OPTIONS: the recipe's options; NETWORK: a `TaskNetwork` around a backbone
    targets.py    SUPERVISION: a `SupervisionBase`: from a cache's annotations to batches and back, and who scores them
    decode.py     from a network's numbers to masks, findings or boxes
    scores.py     `Subject`: a model with the images to score it on; of an exported model, `usable` and `of_model`
    page.py       the page of an evaluation and its pictures
    plan.py       PLANNER: a `plan.planner.TaskPlanner`, for `medssl plan`; a task may do without

`decode.py` and `page.py` load no torch, so that inference and reports may load them; neither does this module.
Who asks for what: `engine.finetune` and `engine.check` network and supervision; `engine.evaluate`, studies and
`medssl evaluate` the subject; export `is_exportable`, `head` and its `decode.py`; the command line every `FIGURE`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Protocol, Self, cast

from pydantic import AfterValidator

from medssl_cli.base import plugins
from medssl_cli.base.errors import UsageError
from medssl_cli.base.faults import validate_model
from medssl_cli.base.names import is_safe_name

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset

    from medssl_cli.base.classes import Activation
    from medssl_cli.base.talk import Talk
    from medssl_cli.cache.items import ItemRecord
    from medssl_cli.cache.splits import Split
    from medssl_cli.cache.store import Cache
    from medssl_cli.data.augmentation import Draws
    from medssl_cli.heads import Head
    from medssl_cli.imaging.placement import ChannelImages
    from medssl_cli.imaging.volume import Volume
    from medssl_cli.preprocessing import Preprocessing
    from medssl_cli.recipe import TaskRecipe
    from medssl_cli.report.gallery import Shown
    from medssl_cli.report.viewer import Scene

SLICES: Final = "slices"
"""What joint pre-training calls the modules that make volumes of slices."""

Part = Literal["network", "targets", "decode", "scores", "page", "plan"]


def load_part(name: str, part: Part) -> ModuleType:
    """A module of a task's folder.

    Raises:
        UsageError: `E_UNKNOWN_NAME`, with the nearest name of a task.
    """
    return importlib.import_module(f"{plugins.load('task', name).__name__}.{part}")


def task_options(recipe: TaskRecipe) -> Any:
    """The validated options of a recipe's task.

    Raises:
        UsageError: `E_UNKNOWN_NAME` or `E_RECIPE`.
    """
    options = load_part(recipe.task.name, "network").OPTIONS
    return validate_model(options, recipe.task.options, source=f"task {recipe.task.name}")


def supervision_of(recipe: TaskRecipe) -> SupervisionBase:
    """What the task of a recipe learns from.

    Raises:
        UsageError: `E_UNKNOWN_NAME` or `E_RECIPE`.
    """
    supervision: SupervisionBase = load_part(recipe.task.name, "targets").SUPERVISION(recipe)
    return supervision


def figures() -> dict[str, FigureOfMerit]:
    """What sums up the scores of every task, by its name."""
    folders = [plugins.load("task", name) for name in plugins.names("task")]
    return {folder.FIGURE.name: folder.FIGURE for folder in folders}


def task_of_head(head: str) -> str:
    """Name of the task whose networks answer with what an exported model does.

    Raises:
        UsageError: `E_USAGE`, no task has such answers.
    """
    for name in plugins.names("task"):
        if head == plugins.load("task", name).HEAD:
            return name
    raise UsageError("E_USAGE", f"the model gives {head}, and there is no task with such answers")


@dataclass(frozen=True)
class FigureOfMerit:
    """The number that one looks at first: a mean over classes of which more is better.

    Args:
        name: Name of a limit, such as `dice`.
        title: Title in messages.
        gate: Code of a mean below its limit.
    """

    name: str
    title: str
    gate: str = "E_GATE_SCORE"


class TaskNetwork(ABC):
    """What every network of a task offers beside being a module with a `backbone`."""

    takes_stacks: ClassVar[bool] = False
    """Whether a backbone of 2D images gets images with several slices, one slice at a time."""
    learnt: Mapping[str, Any] = MappingProxyType({})
    """What its run knows of reading its answers; see `SupervisionBase.learn`."""

    @classmethod  # noqa: B027 - most tasks have nothing to refuse
    def require_fit(cls, recipe: TaskRecipe, options: Any) -> None:
        """Refuse options of a task that contradict the rest of the recipe, before a network is built.

        Args:
            recipe: Recipe of the task.
            options: The validated ones of `recipe.task`.

        Raises:
            UsageError: `E_RECIPE`.
        """

    @abstractmethod
    def loss(self, logits: Any, targets: Tensor) -> TaskLosses:
        """What a step minimises, from the network's answers in training and `SupervisionBase.inputs`."""

    @property
    def activation(self) -> Activation | None:
        """How its answers become probabilities, by which several networks are averaged; None where they cannot be."""
        return None

    def exported(self, head: Head) -> nn.Module:
        """The network as export traces it for a head; itself, unless it looks into its input to decide what to do."""
        return cast("nn.Module", self)

    def kept(self) -> dict[str, nn.Module]:
        """Modules beside the backbone that pre-training may have learnt, by the names that it keeps them under."""
        return {}

    def published_decoder(self) -> PublishedDecoder | None:
        """Its decoder, where that has the names and shapes of published ones; None where it is of our own making."""
        return None

    def own_decoder(self) -> PublishedDecoder | None:
        """Its decoder of our own making, for which a pre-training may have kept one of the same shape."""
        return None


@dataclass(frozen=True)
class PublishedDecoder:
    """A decoder that starts from published weights.

    Args:
        module: Module with the published names.
        scores: What names of tensors of its last layer begin with; they mean something for the same classes only.
    """

    module: nn.Module
    scores: str


@dataclass(frozen=True)
class TaskLosses:
    """What a step optimises, and its parts for the log."""

    total: Tensor
    parts: dict[str, Tensor]


Answer = Callable[..., "NDArray[Any]"]
"""A network from numbers to numbers; most take one array of tiles or images."""


@dataclass(frozen=True)
class Validation:
    """How a network did on the validation images.

    Args:
        score: The figure that chooses the best weights; NaN if the images cannot tell good from bad.
        by_class: The same for each class; NaN where it cannot be told.
    """

    score: float
    by_class: Mapping[str, float] = field(default_factory=dict)


Validate = Callable[[Answer], Validation]
"""A network to how it did."""


class SupervisionBase(ABC):
    """What every supervision offers.

    Args:
        recipe: Recipe of the task.
    """

    annotation: ClassVar[Literal["labels", "boxes", "findings"]]
    """Field of an item's record that holds what is learnt from."""
    is_exportable: ClassVar[bool] = False
    """Whether `head` says how an exported model's numbers become answers."""
    is_mirrored: ClassVar[bool] = False
    """Whether answers are averaged over the flips of `inference.mirror_axes`."""

    def __init__(self, recipe: TaskRecipe) -> None:
        self.recipe = recipe
        self.options: Any = task_options(recipe)

    @property
    def label_set(self) -> str:
        """Name of the labels in the cache."""
        return str(self.options.label_set)

    @property
    def preprocessing(self) -> Preprocessing:
        """What the network sees of an image, in training and wherever it goes."""
        return self.recipe.data.preprocessing

    @property
    @abstractmethod
    def classes(self) -> dict[int, str]:
        """Names by value."""

    @property
    @abstractmethod
    def score(self) -> str:
        """Name of the validation's figure: a key of logs, such as `dice`; more is better."""

    @abstractmethod
    def usable(self, cache: Cache, talk: Talk) -> list[ItemRecord]:
        """Items with labels that the task can learn from or be tested on.

        Raises:
            NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`.
            UsageError: Labels and recipe do not go together.
        """

    @abstractmethod
    def check(self, cache: Cache, usable: Sequence[ItemRecord], split: Split, talk: Talk) -> dict[str, Any]:
        """Refuse what would fail later, and tell what the run's manifest should remember of the labels.

        Args:
            cache: Cache of the items.
            usable: All of the items.
            split: Who trains, validates and tests.
            talk: Told what is worth knowing.

        Raises:
            MedsslError: The labels cannot be used.
        """

    @abstractmethod
    def dataset(self, cache: Cache, records: Sequence[ItemRecord], talk: Talk) -> Dataset[Any]:
        """Samples by (step, slot) of the training items."""

    @abstractmethod
    def begin(self, task: nn.Module, dataset: Any) -> None:
        """Let network and labels know of each other before the first step."""

    @abstractmethod
    def loader(
        self, dataset: Any, *, first_step: int, num_steps: int, rank: int = 0, num_processes: int = 1
    ) -> DataLoader[Any]:
        """Loader of the batches of these steps, of which each process gets an equal share by its rank."""

    @abstractmethod
    def inputs(
        self, batch: Any, draws: Draws, to_device: Callable[[Tensor], Tensor]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """What the network gets, augmented images first, and the targets, on the device.

        Args:
            batch: Batch of the loader.
            draws: Source of all random numbers.
            to_device: Brings a tensor to where the network is.
        """

    @abstractmethod
    def validator(self, cache: Cache, records: Sequence[ItemRecord]) -> Validate:
        """What scores a network on the validation items."""

    def head(
        self, network: nn.Module, predict: Answer, validation: Callable[[], tuple[Cache, list[ItemRecord]]]
    ) -> Head:
        """What an exported model of a network answers with, and how; only where it `is_exportable`.

        Args:
            network: Network of the task.
            predict: The same network, from numbers to numbers.
            validation: The cache with the validation images, on which operating points are chosen.
        """
        raise NotImplementedError(f"no head for {self.recipe.task.name}")

    @property
    def learns(self) -> bool:
        """Whether `learn` is to be asked when a training ends."""
        return False

    def learn(self, network: nn.Module, predict: Answer, cache: Cache, records: Sequence[ItemRecord]) -> dict[str, Any]:
        """What the validation images tell of how the best network's answers should be read, to keep in the run."""
        return {}

    def require_learnt(self, learnt: Mapping[str, Any]) -> None:
        """Refuse with a `ValueError` what `learn` cannot have said."""
        if learnt:
            raise ValueError("the task learns nothing there")

    def agreed(self, several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What an ensemble takes for learnt, of what its members have learnt."""
        return {}

    @abstractmethod
    def subject(
        self, network: nn.Module, predict: Answer, *, name: str, folder: Path, records: Sequence[ItemRecord]
    ) -> Subject:
        """A trained network with the images to score it on.

        Args:
            network: Network of the task.
            predict: The same network, from numbers to numbers.
            name: Name of the run.
            folder: Folder of the run.
            records: The images.
        """


@dataclass(frozen=True)
class Results:
    """How a model did on a split.

    Args:
        document: All of it, for JSON; `Subject.page` shows it.
        csv: One row per item and class.
        columns: Columns of the table; the first is text.
        rows: Rows of the table.
        value: The figure that one looks at first, a mean over classes.
    """

    document: dict[str, Any]
    csv: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    value: float


OnCase = Callable[..., None]
"""Called with (item, figure, what reads the image, prediction, reference) of every image that was scored."""


@dataclass(frozen=True)
class Subject(ABC):
    """A model and the images to score it on.

    Args:
        name: Name of the run or file.
        task: Name of the recipe's task.
        folder: Where results go by default.
        records: The split.
        classes: Names by value.
        weights_sha256: Digest of the weights of a run; empty of an exported model.
    """

    figure: ClassVar[FigureOfMerit]
    """What one looks at first."""

    name: str
    task: str
    folder: Path
    records: Sequence[ItemRecord]
    classes: dict[int, str]
    weights_sha256: str = field(default="", kw_only=True)

    @abstractmethod
    def score(self, cache: Cache, *, split: str, talk: Talk, on_case: OnCase | None = None) -> Results:
        """Score the model on all of its images.

        Args:
            cache: Holds the images.
            split: Its name, for the results.
            talk: Progress.
            on_case: Called after each image, where there is something to draw.

        Raises:
            NothingUsableError: `E_TOO_FEW_PATIENTS` for an empty split.
        """

    @abstractmethod
    def page(self, document: dict[str, Any], pictures: list[Shown]) -> str:
        """HTML of the results' document.

        Args:
            document: Document of the results.
            pictures: The worst, median and best images, worst first; none of a task that calls no `on_case`.
        """

    def pooled(self, others: Sequence[Self]) -> Self:
        """This subject and others of the same task as one: each model goes on scoring its own images.

        Raises:
            UsageError: `E_USAGE`, the task cannot.
        """
        raise UsageError("E_USAGE", f"{self.task} is of a task that is not scored over folds", hint="evaluate one fold")

    def draw(self, image: Volume, prediction: Any, reference: Any) -> Image.Image:
        """Picture of an image with what `on_case` was told of it."""
        raise NotImplementedError(f"{type(self).__name__} tells of no image, so none is drawn")

    def stage(self, image: Volume, prediction: Any, reference: Any) -> Scene | None:
        """The same image for the slice viewer; None of a task without one."""
        return None


class Contract(Protocol):
    """What an exported model says of itself, as far as its task asks."""

    @property
    def task(self) -> str:
        """Name of the task."""

    @property
    def head(self) -> Any:
        """What it answers with."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What the network sees of an image."""

    @property
    def modality(self) -> str | None:
        """Modality of the training images."""


class ExportedModel(Protocol):
    """An exported model as a function of images."""

    @property
    def bundle(self) -> Contract:
        """What it says of itself."""

    def answer(self, images: Volume | ChannelImages) -> Any:
        """What the model says of an example, a single image or one per channel: see the task's `decode.py`."""


def answers_of(model: ExportedModel, examples: Iterable[Sequence[Volume]], number: int, talk: Talk) -> list[Any]:
    """What a model says of each of some examples, with progress.

    Args:
        model: The model.
        examples: The images of each, one per channel.
        number: How many there are.
        talk: Progress.
    """
    answers = []
    for done, images in enumerate(examples, start=1):
        answers.append(model.answer(images[0] if len(images) == 1 else images))
        talk.progress("evaluating", done, number)
    return answers


def _safe(name: str) -> str:
    if not is_safe_name(name):
        raise ValueError("a class name has letters, digits, space and ._+/-, at most 64 characters")
    return name


ClassName = Annotated[str, AfterValidator(_safe)]
BoxNames = Literal["any"] | tuple[str, ...]
"""A class of boxes takes those of any name, or those of the names that are given."""


def each_by_itself(classes: object) -> object:
    """A list of names stands for classes of the same names; one name may stand without a list."""
    if isinstance(classes, list | tuple):
        return {str(name): (name,) for name in classes}
    if not isinstance(classes, dict):
        return classes
    is_alone = {name: isinstance(own, str) and own not in ("any", "none") for name, own in classes.items()}
    return {name: (own,) if is_alone[name] else own for name, own in classes.items()}
