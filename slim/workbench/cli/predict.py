"""Classify images with an exported network. Preprocessing and class names come
from its file.

reads   MODEL, an ONNX file that slim-export wrote, and images of any size
writes  nothing
"""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from slim.errors import SlimError
from slim.workbench.cli.errors import report_user_errors
from slim.workbench.cli.parser import PlainParser

NAMED = 5  # files that couldn't be read

EXAMPLES = """
slim-predict checkpoints/digits/model.onnx digit.png
slim-predict model.onnx photos/ "*.jpg" --top 1 --json
"""


def main(argv: Sequence[str] | None = None) -> None:
    with report_user_errors("slim-predict", argv):
        parser = PlainParser("slim-predict", __doc__, EXAMPLES)
        parser.add_argument("model", metavar="MODEL", help="an ONNX file")
        parser.add_argument("images", nargs="+", metavar="IMAGE", help='an image file, a folder, or "*.jpg"')
        parser.add_argument("--top", type=int, default=3, metavar="N", help="classes to show of each image (3)")
        parser.add_argument("--batch_size", type=int, default=64, metavar="N", help="images in one call (64)")
        parser.add_argument("--provider", default="auto", metavar="TEXT", help="auto, cpu, cuda, … (auto)")
        parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (0: all cores)")
        parser.add_argument("--json", action="store_true", help="a JSON object for each image, one to a line")
        arguments = parser.parse_args(argv)
        from slim.deploy.onnx.predict import OnnxModel, find_images
        from slim.progress import progress
        from slim.tables import printable

        net = OnnxModel(arguments.model, arguments.provider, arguments.threads)
        images = find_images(arguments.images)
        unread: list[SlimError] = []  # told at the end: one broken file among many costs only itself
        results = net.stream(images, arguments.top, arguments.batch_size, lambda _, error: unread.append(error))
        # In a terminal the answers themselves show how far it is; a bar among them would be in their way.
        with nullcontext(str) if sys.stdout.isatty() else progress("images", len(images)) as advance:
            for image, classes in results:
                if arguments.json:
                    found = [{"label": label, "probability": share} for label, share in classes]
                    print(json.dumps({"image": str(image), "classes": found}, ensure_ascii=False))
                else:
                    print(printable(f"{image}: " + ", ".join(f"{label} ({share:.1%})" for label, share in classes)))
                advance(1)
        if unread:
            others = f" (and {len(unread) - NAMED} more)" if len(unread) > NAMED else ""
            raise SlimError("; ".join(map(str, unread[:NAMED])) + others)
