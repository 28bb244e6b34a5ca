"""Masked reconstruction written out number by number, from the papers' equations, in plain Python."""

import math
from collections.abc import Sequence

Numbers = Sequence[float]


def patch_vectors(picture: Sequence[Sequence[Numbers]], side: int) -> list[list[list[float]]]:
    """Patches of a picture [C][X][Y] in reading order, each as a list of pixels in reading order of C numbers."""
    width, height = len(picture[0]), len(picture[0][0])
    found = []
    for first_x in range(0, width, side):
        for first_y in range(0, height, side):
            pixels = []
            for x in range(first_x, first_x + side):
                for y in range(first_y, first_y + side):
                    pixels.append([channel[x][y] for channel in picture])
            found.append(pixels)
    return found


def standardised(numbers: Numbers) -> list[float]:
    """Mean 0 and variance 1, of n - 1."""
    mean = sum(numbers) / len(numbers)
    variance = sum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1)
    return [(number - mean) / math.sqrt(variance + 1e-6) for number in numbers]


def reconstruction(
    pictures: Sequence[Sequence[Sequence[Numbers]]],
    guesses: Sequence[Sequence[Numbers]],
    hidden: Sequence[Sequence[bool]],
    side: int,
    *,
    is_standardised: bool,
) -> float:
    """MAE, section 3: mean squared distance in hidden patches; all channels of a patch are standardised together.

    Args:
        pictures: [B][C][X][Y].
        guesses: [B][N][P * C], pixels in reading order, channels fastest.
        hidden: [B][N].
        side: Of a patch.
        is_standardised: Whether targets are.
    """
    total, number = 0.0, 0
    for picture, guessed, is_hidden in zip(pictures, guesses, hidden, strict=True):
        for patch, guess, counts in zip(patch_vectors(picture, side), guessed, is_hidden, strict=True):
            if counts:
                target = [value for pixel in patch for value in pixel]
                target = standardised(target) if is_standardised else target
                total += sum((a - b) ** 2 for a, b in zip(guess, target, strict=True)) / len(target)
                number += 1
    return total / number


def convolved(
    maps: Sequence[Sequence[Numbers]], seen: Sequence[Sequence[bool]], weights: Sequence[Numbers], bias: float
) -> list[list[list[float]]]:
    """A 3x3 convolution of one channel [B][X][Y] with zeros around, at visible places only; others are 0."""
    found = []
    for image, is_seen in zip(maps, seen, strict=True):
        width, height = len(image), len(image[0])
        rows = []
        for x in range(width):
            row = []
            for y in range(height):
                total = bias
                for i in range(3):
                    for j in range(3):
                        a, b = x + i - 1, y + j - 1
                        if 0 <= a < width and 0 <= b < height and is_seen[a][b]:
                            total += weights[i][j] * image[a][b]
                row.append(total if is_seen[x][y] else 0.0)
            rows.append(row)
        found.append(rows)
    return found


def normalised(values: Sequence[Sequence[Numbers]], seen: Sequence[Sequence[Sequence[bool]]]) -> list[float]:
    """Batch norm of one channel over the visible places of all images, in reading order; hidden places are 0."""
    shown = [value for image, mask in zip(values, seen, strict=True) for value in visible(image, mask)]
    mean = sum(shown) / len(shown)
    variance = sum((value - mean) ** 2 for value in shown) / len(shown)
    found = []
    for image, mask in zip(values, seen, strict=True):
        for row, flags in zip(image, mask, strict=True):
            found += [
                (v - mean) / math.sqrt(variance + 1e-5) if flag else 0.0 for v, flag in zip(row, flags, strict=True)
            ]
    return found


def visible(image: Sequence[Numbers], mask: Sequence[Sequence[bool]]) -> list[float]:
    """Visible values of one image."""
    return [v for row, flags in zip(image, mask, strict=True) for v, flag in zip(row, flags, strict=True) if flag]


def absolute_distance(
    pictures: Sequence[Sequence[Sequence[Numbers]]],
    guesses: Sequence[Sequence[Sequence[Numbers]]],
    hidden: Sequence[Sequence[Sequence[bool]]],
    side: int,
) -> float:
    """SimMIM, equation 1: sum of absolute distances over hidden pixels, divided by their number and the channels."""
    total, number = 0.0, 0
    for picture, guess, blocks in zip(pictures, guesses, hidden, strict=True):
        for x in range(len(picture[0])):
            for y in range(len(picture[0][0])):
                if blocks[x // side][y // side]:
                    number += 1
                    total += sum(abs(a[x][y] - b[x][y]) for a, b in zip(picture, guess, strict=True))
    return total / (number * len(pictures[0]))
