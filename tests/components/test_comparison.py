from typing import Any

from components.artifacts import Gain
from components.comparison import change, gain_lines, shown, text_table

ROW: dict[Any, float] = {"psnr_y": 28.126, "ssim_y": 0.81239, "lpips": 0.1, "lr_psnr": 45}


def test_columns_of_the_text_table_are_aligned() -> None:
    table = text_table({"bicubic": ROW, "challenger": ROW | {"psnr_y": 8.0}})
    assert table.splitlines() == [
        "            PSNR-Y ↑  SSIM-Y ↑  LPIPS ↓  LR-PSNR ↑",
        "bicubic        28.13    0.8124   0.1000      45.00",
        "challenger      8.00    0.8124   0.1000      45.00",
    ]


def test_columns_widen_for_long_values_and_candidates_keep_their_order() -> None:
    lines = text_table({"challenger": ROW | {"psnr_y": -12345.678}, "warmup": ROW}).splitlines()
    assert lines[1].startswith("challenger  -12345.68")
    assert lines[2].startswith("warm-up         28.13")
    assert len({len(line) for line in lines}) == 1


def test_each_metric_has_its_usual_number_of_digits() -> None:
    assert [shown(metric, value) for metric, value in ROW.items()] == ["28.13", "0.8124", "0.1000", "45.00"]


def gain(opponent: Any = "champion", **changed: Any) -> Gain:
    usual: dict[str, Any] = {"metric": "lpips", "mean": 0.012, "interval": (0.00512, 0.019)}
    return Gain(opponent=opponent, better=24, ties=1, worse=3, **usual | changed)


def test_a_change_has_the_sign_of_the_value_and_its_interval_in_order() -> None:
    assert change(gain()) == "LPIPS -0.0120 [-0.0190, -0.0051], 24 better, 1 tie, 3 worse"
    upward = gain(metric="psnr_y", mean=-0.001, interval=(-0.25, 0.5))
    assert change(upward) == "PSNR-Y +0.00 [-0.25, +0.50], 24 better, 1 tie, 3 worse"


def test_a_change_of_too_few_photographs_has_no_interval() -> None:
    assert change(gain(interval=None)) == "LPIPS -0.0120, 24 better, 1 tie, 3 worse"


def test_lines_are_about_the_champion_or_else_about_the_warm_up() -> None:
    [heading, line] = gain_lines([gain("bicubic"), gain("warmup"), gain()], 0.95)
    assert heading == "change against the champion, with 95% intervals:"
    assert line == f"  {change(gain())}"
    assert gain_lines([gain("bicubic"), gain("warmup")], 0.9)[0] == "change against the warm-up, with 90% intervals:"
    assert gain_lines([], 0.95) == []
