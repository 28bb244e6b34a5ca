"""What a recipe may say of `mae`, and what follows from the backbone where it says nothing."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from medssl_cli.base.strict import NonNegativeFloat, PositiveInt, Strict
from medssl_cli.methods import RestoringOptions
from medssl_cli.nn.decoder import Decoder

Variant = Literal["tokens", "sparse", "masked_input"]
Normalisation = Literal["block", "image", "input"]
Part = Annotated[float, Field(gt=0, lt=1)]

FLAT_BELOW: Final = 0.05
ROUNDING: Final = 1e-9


class TokenDecoderOptions(Strict):
    """The small transformer that guesses hidden patches.

    Args:
        width: Numbers of a token; 512 in 2D as published, 384 in 3D if None.
        depth: Blocks.
        num_heads: Heads of each.
    """

    width: PositiveInt | None = None
    depth: PositiveInt = 8
    num_heads: PositiveInt = 16


class Options(RestoringOptions):
    """What is hidden and how it is guessed. Where None follows from something, `Rules.of` says how.

    Args:
        variant: `tokens`, of a backbone of tokens, which sees visible patches only; `sparse`, of convolutions and norms
            that see visible voxels only; `masked_input`, of any network, which sees zeros. None takes `tokens` for
            backbones of tokens, else `masked_input`.
        ratio: Share of the blocks that is hidden; none takes 0.75 of tokens and of 3D images with `sparse`, 0.6 of 2D
            images with `sparse`, 0.5 with `masked_input`.
        block: Voxels of a hidden block along all axes or along each; none takes the patches of tokens, or else the
            coarsest stride of the backbone.
        normalise: What is guessed: each `block` brought to mean 0 and variance 1, the whole `image` so, or the input
            of the network as it is (`input`). None takes `image` with `masked_input`, `input` of 3D images with
            `sparse`, else `block`.
        flat_below: Hidden blocks whose standard deviation is at most this share of the image's take no part: air and
            padding. None takes 0.05 with `normalise: block`, else 0.
        decoder: Decoder from feature maps to voxels; thrown away after the training.
        token_decoder: The same of tokens.
    """

    variant: Variant | None = None
    ratio: Part | None = None
    block: PositiveInt | tuple[PositiveInt, ...] | None = None
    normalise: Normalisation | None = None
    flat_below: NonNegativeFloat | None = None
    decoder: Decoder = Decoder()
    token_decoder: TokenDecoderOptions = TokenDecoderOptions()

    @model_validator(mode="after")
    def _one_decoder(self) -> Self:
        if self.variant == "sparse" and self.decoder.name != "unet":
            raise ValueError("variant sparse has the decoder unet: visible and hidden places enter it level by level")
        return self


class Rules(Strict):
    """The options of a training with nothing left open.

    Args:
        variant: See `Options`.
        ratio: See `Options`.
        normalise: See `Options`.
        flat_below: See `Options`.
        is_volume: Whether images have three dimensions.
    """

    variant: Variant
    ratio: float
    normalise: Normalisation
    flat_below: float
    is_volume: bool

    @classmethod
    def of(cls, options: Options, *, has_tokens: bool, spatial_dims: int) -> Self:
        """Fill in what the options leave open.

        Args:
            options: Options of the recipe.
            has_tokens: Whether the backbone is one of tokens.
            spatial_dims: 2 or 3.
        """
        is_volume = spatial_dims == 3
        variant = options.variant or ("tokens" if has_tokens else "masked_input")
        ratio: dict[Variant, float] = {"tokens": 0.75, "sparse": 0.75 if is_volume else 0.6, "masked_input": 0.5}
        targets: dict[Variant, Normalisation] = {
            "tokens": "block",
            "sparse": "input" if is_volume else "block",
            "masked_input": "image",
        }
        normalise = options.normalise or targets[variant]
        flat_below = FLAT_BELOW if normalise == "block" else 0.0
        return cls(
            variant=variant,
            ratio=ratio[variant] if options.ratio is None else options.ratio,
            normalise=normalise,
            flat_below=flat_below if options.flat_below is None else options.flat_below,
            is_volume=is_volume,
        )

    def num_hidden(self, num_blocks: int) -> int:
        """How many blocks of each image are hidden: rounded as in the code of each variant.

        MAE keeps a whole number of patches, rounded down; SparK rounds what is kept to the nearest; the 3D networks
        hide a number that is rounded down.
        """
        if self.variant == "tokens":
            return num_blocks - int(num_blocks * (1 - self.ratio) + ROUNDING)
        if self.variant == "sparse" and self.is_volume:
            return int(num_blocks * self.ratio + ROUNDING)
        return num_blocks - round(num_blocks * (1 - self.ratio))
