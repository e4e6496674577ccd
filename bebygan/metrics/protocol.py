"""Definitions of the metrics. Published figures with other definitions differ by more than models do."""

from collections.abc import Mapping
from types import MappingProxyType

PROTOCOL: Mapping[str, str] = MappingProxyType(
    {
        "psnr_y": "dB, higher is better; Y of BT.601 studio range (16 to 235, not rounded) of 8-bit SR and HR, "
        "4 pixels cropped from each border, peak 255",
        "ssim_y": "higher is better; same Y and crop, 11x11 Gaussian of sigma 1.5, valid positions only, "
        "K1 0.01, K2 0.03, range 255",
        "lpips": "lower is better; version 0.1, AlexNet, linear heads, 8-bit SR and HR scaled to [-1, 1], whole image",
        "dists": "lower is better; VGG16, weights of DISTS_pytorch 0.1, 8-bit SR and HR in [0, 1], whole image, never "
        "resized",
        "psnr_y_textured": "dB, higher is better; as psnr_y, over the pixels whose luma in HR deviates in an 11x11 "
        "window by 0.025 or more (the mask of arXiv 2103.15295)",
        "psnr_y_flat": "dB, higher is better; as psnr_y, over the other pixels",
        "lpips_textured": "lower is better; as lpips, each position of a feature weighted by its share of these pixels",
        "lpips_flat": "lower is better; as lpips, weighted by the share of the other pixels",
        "artefacts": "share of the pixels, lower is better; the deviation of a channel in a 7x7 window of 8-bit SR is "
        "out of proportion to that of the start's SR: 1 - (2 a b + 2e-4) / (a^2 + b^2 + 2e-4) above 0.5; after "
        "arXiv 2307.02457, without HR",
        "lr_psnr": "dB, higher is better; RGB, 8-bit SR shrunk by MATLAB's antialiased bicubic, clamped, not rounded, "
        "against 8-bit LR, no crop, peak 255",
    }
)
"""Definition of each metric by its name; values with other definitions are not comparable."""
