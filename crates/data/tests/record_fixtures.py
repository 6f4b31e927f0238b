"""Writes the fixtures: small pictures and what torchvision's transforms on PIL images make of them.

    python crates/data/tests/record_fixtures.py

Recorded with torchvision 0.29.2 and Pillow 13.0.0. Results are PNG files, which hold exact pixels.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import functional as F
from torchvision.transforms.functional import InterpolationMode

FOLDER = Path(__file__).parent / "fixtures"
FOLDER.mkdir(exist_ok=True)


def save(image, name, **options):
    image.save(FOLDER / name, **options)


def photo(height, width, seed):
    """Colours that change slowly, with some noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8))


wide = photo(47, 61, 0)
tall = photo(64, 33, 1)
save(wide, "wide.png")
save(tall, "tall.png")
for image, name in [(wide, "wide"), (tall, "tall")]:
    # Down and, for `tall`, up; an odd and an even margin.
    for resize, crop in [(24, 20), (40, 37)]:
        save(F.center_crop(F.resize(image, [resize]), [crop, crop]), f"{name}-centre-{resize}-{crop}.png")
    # Parts at the edges, so that pixels beside a part would show: down, up, and both.
    for top, left, height, width in [(5, 0, 40, 30), (20, 11, 9, 8), (0, 3, 6, 30)]:
        part = F.resized_crop(image, top, left, height, width, [16, 16], InterpolationMode.BILINEAR)
        save(part, f"{name}-part-{top}-{left}-{height}-{width}.png")

for factor in [0.3, 1.6]:
    save(F.adjust_brightness(wide, factor), f"wide-brightness-{factor}.png")
    save(F.adjust_contrast(wide, factor), f"wide-contrast-{factor}.png")
    save(F.adjust_saturation(wide, factor), f"wide-saturation-{factor}.png")

# Formats; each PNG beside a JPEG is what PIL decodes.
jpegs = {
    "420": (wide, {"subsampling": "4:2:0"}),
    "422": (wide, {"subsampling": "4:2:2"}),
    "444": (wide, {"subsampling": "4:4:4"}),
    "progressive": (wide, {"progressive": True}),
    "restarts": (wide, {"restart_marker_blocks": 3}),
    "grey": (wide.convert("L"), {}),
    "cmyk": (wide.convert("CMYK"), {}),
    "rotated": (wide, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
}
for name, (image, options) in jpegs.items():
    path = f"jpeg-{name}.jpg"
    save(image, path, quality=90, **options)
    save(Image.open(FOLDER / path).convert("RGB"), f"jpeg-{name}.png")

save(wide.convert("L"), "png-grey.png")
save(wide.quantize(16), "png-palette.png")
save(Image.open(FOLDER / "png-palette.png").convert("RGB"), "png-palette-rgb.png")
transparent = wide.copy()
transparent.putalpha(wide.convert("L"))
save(transparent, "png-alpha.png")
