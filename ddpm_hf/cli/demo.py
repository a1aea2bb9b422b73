"""`ddpm-hf demo`."""

import argparse
from typing import Any

from ddpm_hf.cli.parser import positive


def add(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="a page in the browser where anyone can draw with models",
        description="A page in the browser where anyone can draw with models. It needs no network and reports nothing.",
    )
    demo.add_argument(
        "models", nargs="+", metavar="MODEL", help="run folders, pipeline folders, published folders or Hub ids"
    )
    demo.add_argument(
        "--host", metavar="TEXT", help="address to serve on; 0.0.0.0 is open to other machines (default: 127.0.0.1)"
    )
    demo.add_argument(
        "--port", type=positive, metavar="INT", help="port to serve on (default: the first free from 7860)"
    )
    demo.add_argument(
        "--max_images", type=positive, default=64, metavar="INT", help="most pictures of one request (default: 64)"
    )
    demo.add_argument(
        "--max_steps",
        type=positive,
        default=250,
        metavar="INT",
        help="most denoising steps of one request (default: 250)",
    )
    demo.add_argument(
        "--queue_size", type=positive, default=32, metavar="INT", help="most requests that wait (default: 32)"
    )
    demo.add_argument(
        "--concurrency", type=positive, default=1, metavar="INT", help="requests drawn at once (default: 1)"
    )
    demo.add_argument(
        "--batch_size",
        type=positive,
        default=32,
        metavar="INT",
        help="pictures drawn at once; changes none of them (default: 32)",
    )
    demo.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run code that lies beside the weights, where a model needs it (default: such a model is refused)",
    )
    demo.add_argument(
        "--device", metavar="TEXT", help="where to draw, such as cpu or cuda:1 (default: a GPU if there is one)"
    )
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    from ddpm_hf.commands.demo import demo

    demo(options)
