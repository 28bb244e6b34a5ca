"""From the toy network's answers to numbers that can be."""

import numpy as np
from numpy.typing import NDArray


def decode(answers: NDArray[np.float32]) -> NDArray[np.float64]:
    return answers.astype(np.float64).clip(0, 1)
