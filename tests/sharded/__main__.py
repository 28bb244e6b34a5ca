"""`medssl` with the method of this folder beside the real ones, for tests that start processes."""

import os
import sys
from pathlib import Path

from medssl_cli import methods
from medssl_cli.cli.app import main

if __name__ == "__main__":
    methods.__path__ = [*methods.__path__, str(Path(__file__).parent / "methods")]
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    if rank == os.environ.get("MEDSSL_TEST_NAN_RANK"):
        from medssl_cli.engine.finetune import Finetuning

        plain = Finetuning.inputs

        def spoilt(self: Finetuning, batch: object, index: int) -> object:
            (images, *beside), targets = plain(self, batch, index)
            return (images * (float("nan") if index == 2 else 1.0), *beside), targets

        Finetuning.inputs = spoilt  # type: ignore[assignment, method-assign]
    if rank == os.environ.get("MEDSSL_TEST_FAIL_RANK"):
        from medssl_cli.engine import optimisation, processes

        processes.CHILDREN_END_WITHIN_S = 1  # type: ignore[misc]

        def fail(*_: object) -> None:
            raise MemoryError

        optimisation.AveragedWeights.update = fail  # type: ignore[method-assign]
    sys.argv[0] = "medssl"
    main()
