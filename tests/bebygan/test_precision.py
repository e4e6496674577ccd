import copy
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bebygan.losses.back_projection import back_projection_loss
from bebygan.losses.best_buddy import best_buddy_loss
from bebygan.losses.region_aware import region_mask
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.generator import Generator
from bebygan.precision import at_least_float32, autocast, compile_in_place, full_precision, resolve, tf32
from bebygan.settings import GanSettings, GeneratorShape
from bebygan.training.state import new_state
from bebygan.training.step import gan_step
from tests.bebygan.training.test_loop import SETTINGS

CPU = torch.device("cpu")


class _Products(TorchDispatchMode):
    """Collects the precision that products and convolutions of float32 would have on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = str(function)
        if any(each in name for each in ("mm.", "mm_", "matmul", "baddbmm", "addmv")):
            self.found.add(torch.backends.cuda.matmul.fp32_precision)
        if "convolution" in name:
            self.found.add(torch.backends.cudnn.conv.fp32_precision)
        return function(*args, **(kwargs or {}))


def precisions(compute: Callable[[], Tensor]) -> set[str]:
    with tf32(True), _Products() as products:
        result = compute()
        if result.requires_grad:
            result.backward()
    return products.found


def images() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.rand(2, 3, 48, 48, requires_grad=True), torch.rand(2, 3, 48, 48), torch.rand(2, 3, 12, 12)


def test_search_bicubic_and_mask_never_round_to_tf32_neither_forward_nor_backward() -> None:
    sr, hr, lr = images()
    assert precisions(lambda: best_buddy_loss(sr, hr, **vars(SETTINGS.best_buddy))) == {"ieee"}
    assert precisions(lambda: back_projection_loss(sr, lr)) == {"ieee"}
    for source in ("lr", "hr"):
        settings = replace(SETTINGS.region, mask_from=source)
        assert precisions(lambda settings=settings: region_mask(hr, lr, **vars(settings))) <= {"ieee"}


def test_the_networks_round_to_tf32_where_it_is_allowed_and_only_there() -> None:
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    assert precisions(lambda: generator(images()[2]).mean()) == {"tf32"}
    with tf32(False), _Products() as products:
        generator(images()[2]).mean().backward()
    assert products.found == {"ieee"}


def test_the_callers_precision_comes_back() -> None:
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    with tf32(True):
        pass
    assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision) == before


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16),
                                                  ("fp16", torch.float16)])  # fmt: skip
def test_each_precision_has_its_number_format(precision: Any, dtype: torch.dtype) -> None:
    with autocast(precision, CPU):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == dtype


def test_auto_is_bf16_only_where_the_processor_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for able, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"avx512_bf16": able})
        assert resolve("auto", CPU) == expected
        assert resolve("fp16", CPU) == "fp16"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_buddies_of_a_step_in_half_precision_are_those_that_float32_finds(precision: Any) -> None:
    """In autocast the official formula chooses another buddy for more than half of the patches."""
    settings = replace(SETTINGS, precision=precision)
    _, hr, lr = images()
    # SR as a generator in half precision gives it in training: the search must look at its very values, in float32.
    with autocast(precision, CPU):
        torch.manual_seed(settings.seed)
        generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
        sr = generator(lr).detach()
    expected = float(best_buddy_loss(sr.float(), hr, **vars(settings.best_buddy)))

    state = new_state(generator, Discriminator(48, 4), settings, CPU)
    state.guard.scale = torch.tensor(1.0)
    assert float(gan_step(settings, None)(state, lr, hr)["best_buddy"]) == pytest.approx(expected, rel=1e-6)


def trained(settings: GanSettings) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the values of a step and the state behind it."""
    torch.manual_seed(settings.seed)
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    state = new_state(generator, Discriminator(48, 4), settings, CPU)
    _, hr, lr = images()
    values = gan_step(settings, None)(state, lr, hr)
    return dict(values), state.state_dict()


@pytest.mark.slow
def test_a_compiled_step_is_the_plain_one_and_has_its_keys(caplog: pytest.LogCaptureFixture) -> None:
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("there is no C++ compiler")
    values, state = trained(replace(SETTINGS, compile=True))
    assert "does not work" not in caplog.text
    expected_values, expected = trained(SETTINGS)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    for name, value in expected_values.items():
        torch.testing.assert_close(values[name], value, rtol=1e-3, atol=1e-4, msg=name)
    for kind in ("generator", "average", "discriminator"):
        assert state[kind].keys() == expected[kind].keys()


def test_without_a_compiler_the_networks_run_as_they_are_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(tmp_path / "no-compiler")))
    torch._dynamo.reset()
    values, _ = trained(replace(SETTINGS, compile=True))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    for warning, network in zip(warnings, ("generator", "discriminator"), strict=True):
        assert re.fullmatch(rf"warning: torch.compile does not work .*: the {network} runs uncompiled", warning)
    expected, _ = trained(SETTINGS)
    assert all(torch.equal(values[name], value) for name, value in expected.items())


def test_the_average_of_a_compiled_generator_can_be_copied() -> None:
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    compile_in_place(generator)
    assert copy.deepcopy(generator).state_dict().keys() == generator.state_dict().keys()


def test_autocast_is_off_inside_and_on_again_behind() -> None:
    a = torch.rand(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(CPU):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16


def fail_inside() -> None:
    with full_precision(CPU):
        assert torch.backends.mkldnn.matmul.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
        raise KeyError


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_users_precision_comes_back_even_after_an_error(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        with pytest.raises(KeyError):
            fail_inside()
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.mkldnn.matmul.fp32_precision == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_only_half_formats_are_widened() -> None:
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32,) * 2,
        (torch.float64,) * 2,
    ):
        assert at_least_float32(torch.zeros(1, dtype=dtype)).dtype == expected
