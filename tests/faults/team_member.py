"""One process of a team under torchrun: extracts, counts its work, and dies once at a given batch.

torchrun --nproc-per-node N -m tests.faults.team_member FOLDER [RANK BATCH]
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from rdfia.transfer import extraction
from tests.faults.victims import PHOTOS, SMALL, TAPS
from tests.support.tiny_networks import tiny_vgg


def main(folder: Path, dying: int = -1, at: int = 0) -> None:
    torch.set_num_threads(1)
    with extraction.current_team() as team:
        died = folder / "died"
        attempt = "second" if died.exists() else "first"

        def counted(batches: Iterable[object], total: int, label: str) -> Iterator[object]:
            (folder / f"{attempt}-{team.rank}").write_text(str(total))
            for number, batch in enumerate(batches):
                if team.rank == dying and number == at and attempt == "first":
                    died.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

        extraction.extract(
            tiny_vgg(),
            PHOTOS,
            TAPS,
            root=folder / "store",
            preprocess=SMALL,
            dtype=torch.float32,
            batch_size=1,
            team=team,
            progress=counted,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
