"""`ddpm-hf study`."""

import argparse
from typing import Any

from ddpm_hf.cli.parser import positive
from ddpm_hf.cli.recipes import add_settings
from ddpm_hf.config import setting_keys


def add(commands: Any) -> None:
    study = commands.add_parser(
        "study",
        help="train and measure a study's variants, and write its tables and figures",
        description="Train and measure the variants of a study, and write its tables and figures. The same command goes on"
        " where it was interrupted; what is done is not done again.",
        usage="%(prog)s STUDY [--scale {small,full}] [--only VARIANT ...] [--section.setting VALUE ...]",
    )
    study.add_argument("study", metavar="STUDY", help="a study's file, or the name of one that comes with the package")
    study.add_argument(
        "--scale",
        choices=("small", "full"),
        default="small",
        help="small ends on two CPU cores within 20 minutes; full is the report's own (default: small)",
    )
    study.add_argument(
        "--only", nargs="+", metavar="VARIANT", help="train and measure these variants alone (default: all)"
    )
    study.add_argument(
        "--jobs",
        type=positive,
        metavar="INT",
        help="variants trained and measured at once (default: one a GPU; without one, at small scale one a core, up to 8)",
    )
    study.add_argument(
        "--out", metavar="FOLDER", help="the study's folder, with report.md in it (default: studies/<name>-<scale>)"
    )
    study.add_argument(
        "--report_only", action="store_true", help="write the report anew from what has been measured, and no more"
    )
    study.add_argument("--dry_run", action="store_true", help="list what would be done, with each command, then exit")
    evaluation = study.add_argument_group("evaluation", "what the study's file says of it, otherwise")
    evaluation.add_argument("--num_images", type=positive, metavar="INT", help="images drawn for each measurement")
    evaluation.add_argument("--extractor", metavar="TEXT", help="network whose features are compared")
    evaluation.add_argument("--extractor_weights", metavar="TEXT", help="the extractor's weights, a file or folder")
    add_settings(study)
    study.set_defaults(run=_study)


def _study(options: argparse.Namespace) -> None:
    from ddpm_hf.commands.study import study

    given = vars(options)
    study(options, {key: given[key] for key in setting_keys() if key in given})
