"""Challengers with verdicts, and their registration."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bebygan.files import sha256_of
from bebygan.settings import ExportKind
from components.artifacts import Registration
from components.config import RegisterParams, load_params
from components.register import step
from components.register.step import register
from components.tracking.provenance import provenance
from components.tracking.runs import step_run

ROOT = Path(__file__).parents[3]
GAIN = {
    "opponent": "champion",
    "metric": "lpips",
    "mean": 0.01,
    "interval": [0.002, 0.03],
    "better": 8,
    "ties": 1,
    "worse": 0,
}


@pytest.fixture
def challenger(generator_folder: Callable[..., Path]) -> Path:
    return generator_folder("challenger", 1)


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[..., Path]:
    """Write the folder of an evaluation of a challenger."""

    def write(challenger: Path, verdict: str, champion: str | None = None, **changed: Any) -> Path:
        folder = tmp_path / "evaluation"
        folder.mkdir(exist_ok=True)
        row = {"psnr_y": 28.0, "ssim_y": 0.8, "lpips": 0.1, "lr_psnr": 45.0}
        (folder / "metrics.json").write_text(json.dumps({"bicubic": row, "challenger": row | {"lpips": 0.0875}}))
        said = {
            "verdict": verdict,
            "reasons": ["passed: lpips 0.0875, at most 0.1 asked"],
            "model": "tests",
            "champion": champion,
            "gains": [GAIN] if champion else [],
            "challenger_sha256": sha256_of(challenger / "generator.safetensors"),
            "protocol": {},
            "provenance": provenance(load_params(ROOT / "params.yaml").evaluate, "0123.dir"),
        }
        (folder / "verdict.json").write_text(json.dumps(said | changed))
        return folder

    return write


@pytest.fixture
def registered(
    tmp_path: Path,
    evaluated: Callable[..., Path],
    mlflow_store: str,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Registration]:
    """Register a challenger without the load check, which takes seconds and has its own tests."""
    monkeypatch.setattr(step, "check_loads", lambda *_: None)

    def run_step(
        challenger: Path,
        verdict: str,
        champion: str | None = None,
        promotion: Any = "automatic",
        *,
        exports: tuple[ExportKind, ...] = (),
        ledger: str = "",
        **changed: Any,
    ) -> Registration:
        params = RegisterParams(promotion=promotion, exports=exports)
        folder = evaluated(challenger, verdict, champion, **changed)
        with step_run("register", params) as run:
            return register(challenger, folder, tmp_path / "out", params=params, run=run, ledger=ledger)

    return run_step
