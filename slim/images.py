"""Photographs as they were meant to be seen."""

from PIL import ExifTags, Image

# The values of the EXIF tag Orientation (EXIF 2.32, section 4.6.4 A) that ask for something; 1 is upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; itself where it says nothing, or nothing that can be read.

    ImageOps.exif_transpose does the same, but writes the tags anew, and fails on broken ones.
    """
    picture.load()  # Pillow turns a TIFF by itself then
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's readers of tags raise errors of many kinds
        return picture
    return picture.transpose(TURNS[orientation]) if orientation in TURNS else picture
