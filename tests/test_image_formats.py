"""Only formats that Pillow decodes itself are opened."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from futurel1.data.frames import decode_image, read_image
from futurel1.errors import MediaError
from futurel1.image_formats import IMAGE_FORMATS, open_image

PROGRAM = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) (w) file\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "TGA", "ICO"])
def test_pictures_are_opened(kind: str) -> None:
    assert kind in IMAGE_FORMATS
    stream = BytesIO()
    Image.new("RGB", (16, 16), "navy").save(stream, kind)
    assert open_image(stream).size == (16, 16)
    assert decode_image(stream.getvalue(), "here").size == (16, 16)


def test_programs_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would have Ghostscript run this."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: pytest.fail("a program was run"))
    assert Image.open(BytesIO(PROGRAM)).format == "EPS"
    with pytest.raises(UnidentifiedImageError):
        open_image(BytesIO(PROGRAM))
    (tmp_path / "a.png").write_bytes(PROGRAM)
    with pytest.raises(MediaError, match=r"a\.png: not a readable image"):
        read_image(tmp_path / "a.png")
