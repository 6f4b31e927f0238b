"""Writes fixtures: one small picture in each format and kind of pixels, and beside it, as a PNG, what Pillow's
`convert("RGB")` makes of it.

    python crates/data/tests/record_pictures.py

Recorded with Pillow 13.0.0. `format-NAME.EXT` belongs to `format-NAME.png`; `record_fixtures.py` has to run before.
"""

import struct
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent / "fixtures"


def expect(name, file):
    Image.open(FOLDER / file).convert("RGB").save(FOLDER / f"format-{name}.png")


def record(image, name, extension, **options):
    file = f"format-{name}.{extension}"
    image.save(FOLDER / file, **options)
    expect(name, file)


rgb = Image.open(FOLDER / "wide.png").resize((23, 17))
grey = rgb.convert("L")
palette = rgb.quantize(11)
clear = rgb.copy()
clear.putalpha(grey)
black = grey.convert("1")

record(rgb, "bmp-rgb", "bmp")
record(grey, "bmp-grey", "bmp")
record(palette, "bmp-palette", "bmp")
record(black, "bmp-black", "bmp")
record(clear, "bmp-alpha", "bmp")
record(rgb, "ppm", "ppm")
record(grey, "pgm", "pgm")
record(black, "pbm", "pbm")
(FOLDER / "format-pgm-text.pgm").write_text("P2\n# a comment\n3 2 15\n0 1 7 8 14 15\n")
expect("pgm-text", "format-pgm-text.pgm")
record(rgb, "tiff-rgb", "tif")
record(grey, "tiff-grey", "tif", compression="tiff_lzw")
record(black, "tiff-black", "tif")
record(palette, "tiff-palette", "tif", compression="tiff_adobe_deflate")
record(clear, "tiff-alpha", "tif", compression="packbits")
record(rgb.convert("CMYK"), "tiff-cmyk", "tif")
record(rgb, "webp-exact", "webp", lossless=True)
record(clear, "webp-exact-alpha", "webp", lossless=True, exact=True)
record(rgb, "webp-lossy", "webp", quality=80)
record(clear, "webp-lossy-alpha", "webp", quality=80)
record(rgb, "webp-frames", "webp", lossless=True, save_all=True, append_images=[rgb.rotate(180)])
record(palette, "gif", "gif")
record(grey, "gif-grey", "gif", interlace=True)
record(clear.quantize(9), "gif-clear", "gif", transparency=3)
record(palette, "gif-frames", "gif", save_all=True, append_images=[palette.rotate(180)], duration=100)


def move_frame(file, to, size, transparent=None):
    """Sets the screen of a GIF to `size`, and the place of its first frame to `to`."""
    data = bytearray((FOLDER / "format-gif.gif").read_bytes())
    data[6:10] = struct.pack("<HH", *size)
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    assert data[at] == ord(","), data[at]
    data[at + 1 : at + 5] = struct.pack("<HH", *to)
    if transparent is not None:
        data[at:at] = bytes([0x21, 0xF9, 4, 1, 0, 0, transparent, 0])
    (FOLDER / file).write_bytes(data)


for name, options in {
    "gif-part": ((3, 5), (31, 25)),
    "gif-part-clear": ((3, 5), (31, 25), 4),
    "gif-beyond": ((3, 5), (10, 25)),
}.items():
    move_frame(f"format-{name}.gif", *options)
    expect(name, f"format-{name}.gif")

# The CMYK picture said to be YCCK.
data = bytearray((FOLDER / "jpeg-cmyk.jpg").read_bytes())
at = data.index(b"Adobe") + 11
assert data[at] == 0
data[at] = 2
(FOLDER / "jpeg-ycck.jpg").write_bytes(data)
Image.open(FOLDER / "jpeg-ycck.jpg").convert("RGB").save(FOLDER / "jpeg-ycck.png")

# 16 bits, of which Pillow makes something else.
deep = np.arange(0, 65536, 9362, dtype=np.uint16).reshape(2, 4)
Image.fromarray(deep).save(FOLDER / "deep.tif")
(FOLDER / "deep.pgm").write_bytes(b"P5 4 2 65535\n" + deep.astype(">u2").tobytes())

# Pickles as numpy writes arrays, in every version of the format.
import pickle  # noqa: E402

data = np.stack([np.arange(130), 255 - np.arange(130)]).astype(np.uint8)
cat = "cat"
content = {
    "data": data,
    "labels": [3, 0, 300, -2, 70_000],
    "names": [cat, cat, "Ñandú"],
    "floats": np.ones((2, 3), np.float32),
}
for protocol in range(2, 6):
    (FOLDER / f"pickle-protocol{protocol}").write_bytes(pickle.dumps(content, protocol))
fortran = content | {"data": np.asfortranarray(data)}
(FOLDER / "pickle-fortran").write_bytes(pickle.dumps(fortran, 4))
(FOLDER / "pickle-fortran5").write_bytes(pickle.dumps(fortran, 5))
# As numpy 1 for Python 2, with keys that are bytes.
encoded = pickle.dumps({key.encode(): value for key, value in content.items()}, 2)
(FOLDER / "pickle-encoded").write_bytes(encoded.replace(b"numpy._core", b"numpy.core"))


class Python2:
    """Writes what Python 2's `cPickle.dump(value, file, 2)` does, whose texts are bytes."""

    def __init__(self):
        self.kept = 0

    def keep(self, code):
        self.kept += 1
        return code + b"q" + bytes([self.kept])

    def write(self, value):
        if isinstance(value, np.ndarray):
            code = {1: b"u1", 4: b"f4"}[value.itemsize]
            call = self.keep(b"cnumpy.core.multiarray\n_reconstruct\n") + self.keep(b"cnumpy\nndarray\n")
            call += self.keep(self.keep(b"K\0\x85") + b"U\x01b\x87") + self.keep(b"R")
            dtype = self.keep(self.keep(self.keep(b"cnumpy\ndtype\n") + b"U\x02" + code + b"K\0K\x01\x87") + b"R")
            dtype += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
            shape = b"".join(self.write(size) for size in value.shape) + b"\x86"
            raw = value.tobytes()
            return call + b"(K\x01" + shape + dtype + b"\x89" + b"T" + struct.pack("<I", len(raw)) + raw + b"tb"
        if isinstance(value, dict):
            return self.keep(b"}") + b"(" + b"".join(self.write(k) + self.write(v) for k, v in value.items()) + b"u"
        if isinstance(value, list):
            return self.keep(b"]") + b"(" + b"".join(map(self.write, value)) + b"e"
        if isinstance(value, str):
            return self.keep(b"U" + bytes([len(value.encode())]) + value.encode())
        if 0 <= value < 256:
            return b"K" + bytes([value])
        return b"M" + struct.pack("<H", value) if 0 <= value < 65536 else b"J" + struct.pack("<i", value)


old = b"\x80\x02" + Python2().write(content) + b"."
loaded = pickle.loads(old, encoding="bytes")
assert (loaded[b"data"] == data).all() and loaded[b"labels"] == content["labels"]
(FOLDER / "pickle-python2").write_bytes(old)
