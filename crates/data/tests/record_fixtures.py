"""Writes the fixtures: small pictures and what torchvision's transforms on PIL images make of them.

    python crates/data/tests/record_fixtures.py

Recorded with torchvision 0.29.2 and Pillow 13.0.0. Results are PNG files, which hold exact pixels, and
`recorded.json`, which has the digests of pictures that must be matched exactly.
"""

import hashlib
import json
import math
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import AutoAugment, RandAugment, RandomErasing, v2
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op
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

# The shorter side resized, then a crop.
save(F.crop(F.resize(wide, [30]), 9, 17, 20, 20), "wide-scaled-30-9-17.png")
save(F.crop(F.resize(tall, [40]), 30, 2, 20, 20), "tall-scaled-40-30-2.png")

recorded = {}


def digest(image):
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()[:16]


# Crops within a reflected border.
recorded["reflected"] = [
    {
        "picture": f"{name}.png",
        "border": border,
        "down": down,
        "right": right,
        "digest": digest(
            F.crop(F.pad(image, border, padding_mode="reflect"), down, right, image.height, image.width)
        ),
    }
    for image, name in [(wide, "wide"), (tall, "tall")]
    for border, down, right in [(4, 0, 0), (4, 8, 8), (4, 3, 5), (4, 4, 4), (32, 64, 1), (32, 2, 60)]
]

# Magnitudes, all levels of AutoAugment and the one of RandAugment.
recorded["magnitudes"] = []
for height, width in [(47, 61), (64, 33), (224, 224)]:
    ten = AutoAugment()._augmentation_space(10, (height, width))
    rand = RandAugment()._augmentation_space(31, (height, width))
    for operation, (magnitudes, _) in ten.items():
        at = lambda magnitudes, level: float(magnitudes[level] if magnitudes.ndim else magnitudes)
        recorded["magnitudes"].append(
            {
                "operation": operation,
                "height": height,
                "width": width,
                "imagenet": [at(magnitudes, level) for level in range(10)],
                "rand": at(rand[operation][0], 9) if operation in rand else None,
            }
        )

# Each operation. The last picture has so few pixels that `equalize` overflows its table.
pictures = [("wide.png", wide), ("tall.png", tall)]
pictures += [("wide-centre-24-20.png", F.center_crop(F.resize(wide, [24]), [20, 20]))]
recorded["operations"] = []
for name, image in pictures:
    space = {
        "Identity": (torch.tensor(0.0), False),
        **AutoAugment()._augmentation_space(10, (image.height, image.width)),
    }
    for operation, (magnitudes, signed) in space.items():
        values = magnitudes[[1, 4, 7, 9]].tolist() if magnitudes.ndim else [0.0]
        for magnitude in [sign * value for value in values for sign in ([1, -1] if signed else [1])]:
            result = _apply_op(image, operation, magnitude, InterpolationMode.NEAREST, None)
            recorded["operations"].append(
                {
                    "picture": name,
                    "operation": operation,
                    "magnitude": magnitude,
                    "digest": digest(result),
                }
            )

# Each pair of AutoAugment: both operations with either sign, and either alone.
recorded["pairs"] = []
for pair, operations in enumerate(AutoAugment().policies):
    limits = [probability for _, probability, _ in operations]
    for more, positive, (name, image) in [
        ([-0.001, -0.001], [False, False], pictures[0]),
        ([-0.001, -0.001], [True, True], pictures[0]),
        ([-0.001, -0.001], [False, True], pictures[1]),
        ([0.001, -0.001], [True, False], pictures[0]),
        ([-0.001, 0.001], [True, True], pictures[0]),
    ]:
        chances = [limit + more for limit, more in zip(limits, more)]
        params = (pair, torch.tensor(chances), torch.tensor(positive).int())
        with mock.patch.object(AutoAugment, "get_params", staticmethod(lambda _: params)):
            result = AutoAugment()(image)
        recorded["pairs"].append(
            {
                "picture": name,
                "pair": pair,
                "chances": chances,
                "positive": positive,
                "digest": digest(result),
            }
        )

# Each operation of RandAugment, with either sign.
recorded["rand"] = []
for name, image in pictures[:2]:
    space = RandAugment()._augmentation_space(31, (image.height, image.width))
    for operation, (_, signed) in enumerate(space.values()):
        for negative in [0, 1] if signed else [0]:
            draws = [torch.tensor([operation]), torch.tensor([negative])]
            with mock.patch.object(torch, "randint", side_effect=draws):
                result = RandAugment(num_ops=1)(image)
            recorded["rand"].append(
                {
                    "picture": name,
                    "operation": operation,
                    "positive": not negative,
                    "digest": digest(result),
                }
            )

# Sizes of erased boxes, from the two numbers that decide them; none if the box does not fit.
rng = np.random.default_rng(2)
recorded["erased"] = []
for height, width in [(224, 224), (32, 32), (20, 40), (5, 90)]:
    for _ in range(20):
        share = float(np.float32(rng.uniform(0.02, 0.33)))
        log_aspect = float(np.float32(rng.uniform(math.log(0.3), math.log(3.3))))
        draws = [torch.tensor([share]), torch.tensor([log_aspect])] * 10
        with mock.patch.object(torch.Tensor, "uniform_", side_effect=draws):
            _, _, h, w, v = RandomErasing.get_params(torch.zeros(3, height, width), (0, 1), (1, 1), [0.0])
        size = [h, w] if v.shape == (1, 1, 1) else None
        recorded["erased"].append(
            {"height": height, "width": width, "share": share, "log_aspect": log_aspect, "size": size}
        )

# Mixed batches.
images = (torch.arange(4 * 2 * 8 * 10) * 37 % 101).float().reshape(4, 2, 8, 10) / 8 - 6
labels = torch.arange(4)
mixup = v2.MixUp(alpha=0.2, num_classes=4)
share = float(np.float32(0.3))
with mock.patch.object(v2.MixUp, "make_params", lambda *_: {"lam": share}):
    mixed, targets = mixup(images, labels)
numbers = [float(str(value)) for value in mixed.flatten().numpy()]  # no more digits than needed
recorded["mixup"] = {"share": share, "images": numbers, "targets": targets.tolist()}

recorded["boxes"] = []
for height, width in [(224, 224), (8, 10), (33, 7)]:
    for share in [0.0, 0.1, 0.37, 0.5, 0.9, 0.99, 1.0]:
        for _ in range(3):
            x, y = int(rng.integers(width)), int(rng.integers(height))
            cutmix = v2.CutMix(alpha=1.0, num_classes=4)
            cutmix._dist = mock.Mock(sample=lambda _: share)
            with mock.patch.object(torch, "randint", side_effect=[torch.tensor([x]), torch.tensor([y])]):
                params = cutmix.make_params([torch.zeros(1, 3, height, width)])
            recorded["boxes"].append(
                {
                    "height": height,
                    "width": width,
                    "share": share,
                    "x": x,
                    "y": y,
                    "corners": list(params["box"]),
                    "share_adjusted": params["lam_adjusted"],
                }
            )

params = {"box": (3, 2, 9, 6), "lam_adjusted": 0.7}
with mock.patch.object(v2.CutMix, "make_params", lambda *_: params):
    mixed, _ = v2.CutMix(alpha=1.0, num_classes=4)(images, labels)
recorded["cutmix"] = mixed.flatten().tolist()

with open(FOLDER / "recorded.json", "w") as file:
    # One line per entry.
    dump = lambda value: json.dumps(value, separators=(",", ":"))
    lines = [
        f"{dump(name)}:[\n" + ",\n".join(map(dump, value)) + "\n]"
        if isinstance(value[0] if isinstance(value, list) else None, dict)
        else f"{dump(name)}:{dump(value)}"
        for name, value in recorded.items()
    ]
    file.write("{\n" + ",\n".join(lines) + "\n}\n")

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
