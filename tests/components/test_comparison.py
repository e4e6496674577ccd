from typing import Any

from components.comparison import shown, text_table

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
