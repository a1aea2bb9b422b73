"""`ddpm-hf publish`."""

import argparse
from typing import Any


def add(commands: Any) -> None:
    publish = commands.add_parser(
        "publish",
        help="make a run ready for the Hub, and push it there",
        description="Make the folder that the Hub shows of a run, model card included, and check that it works without this"
        " package; with --push, upload it.",
    )
    publish.add_argument("run_folder", metavar="RUN", help="a run folder, such as runs/quickstart")
    publish.add_argument(
        "--out",
        metavar="FOLDER",
        help="where the folder goes; an earlier publication there is replaced (default: RUN/hub)",
    )
    publish.add_argument(
        "--variant",
        choices=("fp16", "bf16"),
        action="append",
        metavar="{fp16,bf16}",
        help="also write the denoiser's weights in half precision; may be given twice (default: float32 alone)",
    )
    publish.add_argument("--push", metavar="OWNER/NAME", help="upload it to this repository (default: nowhere)")
    publish.add_argument(
        "--private",
        action="store_true",
        help="make the repository private if it has to be created, and push to no public one (default: public)",
    )
    publish.add_argument(
        "--revision", metavar="TEXT", help="push to this branch, made if it is missing (default: main)"
    )
    publish.add_argument(
        "--license",
        metavar="TEXT",
        help="the model's license, by the Hub's name for it, such as apache-2.0 (default: the recipe's hub.license)",
    )
    publish.add_argument(
        "--space", action="store_true", help="also write the folder of a Space with the demo, beside the other"
    )
    publish.set_defaults(run=_publish)


def _publish(options: argparse.Namespace) -> None:
    from ddpm_hf.commands.publish import publish

    publish(options)
