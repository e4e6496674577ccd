import os
from pathlib import Path

import pytest
import torch

from bebygan.errors import WeightsError
from bebygan.networks.weights import read_state


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_a_file_of_tensors_that_holds_code_is_refused_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save({"layer.weight": Evil(mark)}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_state(tmp_path / "evil.pth")
    assert not mark.exists()
