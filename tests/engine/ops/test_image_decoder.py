"""Images come back from lossless files as they went in."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest

from engine.errors import MissingExtraError
from engine.ops import find

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def encoded(pixels: Any, form: str) -> Any:
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.fromarray(pixels).save(stream, form)
    return np.frombuffer(stream.getvalue(), np.uint8)


def decoder(pixel_format: str = "RGB") -> Any:
    return find("", "ImageDecoder", 20).from_attributes({"pixel_format": pixel_format})


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_a_lossless_image_is_decoded_exactly(form: str) -> None:
    stream = encoded(PIXELS, form)
    np.testing.assert_array_equal(decoder().meaning(stream), PIXELS)
    np.testing.assert_array_equal(decoder("BGR").meaning(stream), PIXELS[..., ::-1])


def test_a_grey_image_has_one_channel_or_three_equal_ones() -> None:
    stream = encoded(PIXELS[..., 0], "PNG")
    np.testing.assert_array_equal(decoder("Grayscale").meaning(stream), PIXELS[..., :1])
    np.testing.assert_array_equal(decoder().meaning(stream), PIXELS[..., [0, 0, 0]])


@pytest.mark.parametrize("length", [0, 4, 60])
def test_a_damaged_stream_gives_an_empty_image(length: int) -> None:
    assert decoder().meaning(encoded(PIXELS, "PNG")[:length]).shape == (0, 0, 3)


def test_an_unknown_pixel_format_is_refused() -> None:
    with pytest.raises(ValueError, match="CMYK"):
        decoder("CMYK").meaning(np.zeros(4, np.uint8))


def test_without_pillow_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"enginefarm\[image\]"):
        decoder().meaning(np.zeros(4, np.uint8))
