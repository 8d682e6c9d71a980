"""Classify images with an exported network. Preprocessing and class names come
from its file.

reads   MODEL, an ONNX file that slim-export wrote, and images of any size
writes  nothing
"""

from collections.abc import Sequence

from slim.cli.command import PlainParser, mistakes_in_one_line


def main(argv: Sequence[str] | None = None) -> None:
    with mistakes_in_one_line("slim-predict"):
        parser = PlainParser("slim-predict", __doc__)
        parser.add_argument("model", metavar="MODEL", help="an ONNX file")
        parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
        parser.add_argument("--top", type=int, default=3, metavar="N", help="classes to show of each image (3)")
        arguments = parser.parse_args(argv)
        from slim.export import OnnxModel

        results = OnnxModel(arguments.model).predict(arguments.images, top=arguments.top)
        for image, classes in zip(arguments.images, results, strict=True):
            print(f"{image}: " + ", ".join(f"{label} ({share:.1%})" for label, share in classes))
