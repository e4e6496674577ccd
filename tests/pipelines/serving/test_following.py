"""Which version is served."""

import pytest
import torch

from bebygan.networks.generator import Generator
from benchmarks.serving import Registry
from pipelines.serving.following import Follower
from tests.conftest import free_ports


def test_without_a_champion_nothing_is_served_until_there_is_one(registry: Registry) -> None:
    follower = Follower("champion", "bebygan", "fp32")
    follower.refresh()
    assert follower.current is None
    assert "has no champion in this registry" in str(follower.fault)
    registry.promote(registry.add(1))
    follower.refresh()
    assert follower.current is not None
    assert (follower.current.version.version, follower.fault) == ("1", None)


def _before_a_promotion(registry: Registry) -> Follower:
    """Return a follower that serves version 1 and has not seen yet that version 2 is champion."""
    registry.promote(registry.add(1))
    follower = Follower("champion", "bebygan", "fp32")
    follower.refresh()
    registry.promote(registry.add(2))
    return follower


def test_a_version_that_upscales_to_nothing_finite_is_not_served(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = _before_a_promotion(registry)
    before = follower.current
    monkeypatch.setattr(Generator, "forward", lambda _, lr: torch.full((1, 3, 96, 68), float("nan")) + lr.sum())
    follower.refresh()
    assert follower.current is before
    assert follower.fault == "models:/bebygan/2 does not upscale a probe image: give the alias to another version"


def test_a_version_that_cannot_be_used_for_any_reason_is_not_served_and_named(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = _before_a_promotion(registry)
    before = follower.current

    def forward(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory\nwith two models")

    monkeypatch.setattr(Generator, "forward", forward)
    follower.refresh()
    assert (follower.current, follower.refused) == (before, 1)
    assert follower.fault == (
        "models:/bebygan/2 cannot be used here (out of memory with two models): give the alias to another version"
    )


def test_while_the_registry_is_unreachable_the_version_is_served_on(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry.promote(registry.add(1))
    follower = Follower("champion", "bebygan", "fp32")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nowhere)
    follower.refresh()
    assert follower.current is None
    assert f"failed at MLflow's {nowhere}" in str(follower.fault)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    follower.refresh()
    before = follower.current
    assert before is not None
    assert follower.fault is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nowhere)
    follower.refresh()
    assert follower.current is before
    assert f"failed at MLflow's {nowhere}" in str(follower.fault)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    follower.refresh()
    assert (follower.current, follower.fault) == (before, None)
