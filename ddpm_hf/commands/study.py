"""`ddpm-hf study`."""

import argparse
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from ddpm_hf.errors import UserError
from ddpm_hf.studies.commands import slots, visible_gpus
from ddpm_hf.studies.plan import Plan, make_plan, shown
from ddpm_hf.studies.progress import Progress
from ddpm_hf.studies.report import write_report
from ddpm_hf.studies.results import Results, images_per_epoch
from ddpm_hf.studies.run import Execution
from ddpm_hf.studies.study import load_study


def study(options: argparse.Namespace, settings: Mapping[str, str]) -> None:
    """Trains, measures, reports. Exits with 1 where something failed, and 128 + signal where it was ended by one."""
    for key in ("run.name", "run.output_dir"):
        if key in settings:
            raise UserError(f"--{key}: a study's runs have their variants' names; --out chooses its folder")
    file = load_study(options.study)
    out = Path(options.out or Path("studies") / f"{file.name}-{options.scale}")
    about = {name: getattr(options, name) for name in ("num_images", "extractor", "extractor_weights")}
    evaluation = {name: value for name, value in about.items() if value is not None}
    plan = make_plan(file, options.scale, out, settings, evaluation)
    for name in options.only or ():
        if name not in plan.variants:
            raise UserError(f"--only: {name} is no variant at this scale; there are {', '.join(plan.variants)}")
    progress, has_gpu = Progress(out), bool(visible_gpus())
    if options.dry_run:
        return _list(plan, progress, Execution(plan, progress, has_gpu, options.only))
    try:
        out.mkdir(parents=True, exist_ok=True)
        (lock := FileLock(out / ".lock")).acquire(timeout=0)
    except Timeout:
        raise UserError(f"{out} is in use by another ddpm-hf study; wait for it, or choose another --out") from None
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None
    with lock:
        if options.report_only:
            print(f"report in {write_report(Results(plan, progress, has_gpu))}")
            return None
        _carry_out(plan, progress, has_gpu, options)


def _carry_out(plan: Plan, progress: Progress, has_gpu: bool, options: argparse.Namespace) -> None:
    signals = []

    def interrupt(number: int, _frame: object) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    execution = Execution(plan, progress, has_gpu, options.only, say=_say)
    width = max(
        sum(task.trains is not None and not task.needs for task in execution.tasks(64)), len(plan.jobs)
    )  # as much as could run at once
    places = slots(options.jobs, plan.scale_name, width)
    tasks = execution.tasks(len(places))
    at_once = f", {len(places)} at once" if len(places) > 1 else ""
    print(
        f"{plan.file.study.title}: {len(tasks)} trainings and measurements to do{at_once}; logs in {plan.out / 'logs'}"
    )
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with tqdm(total=len(tasks), unit="task", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
            epochs: dict[str, int | None] = {}
            execution.run(places, lambda: _show(bar, execution, len(tasks), epochs))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    report = write_report(Results(plan, progress, has_gpu))
    for variant, lacks in execution.blocked.items():
        print(f"{variant}: {lacks}")
    print(f"report in {report}")
    if execution.interrupted:
        print("interrupted; the same command goes on", file=sys.stderr)
        raise SystemExit(128 + signals[0])
    if execution.failed:
        failed = ", ".join(execution.failed)
        print(f"error: failed: {failed}; the report says why, the same command tries again", file=sys.stderr)
        raise SystemExit(1)


def _say(text: str) -> None:
    tqdm.write(text)
    sys.stdout.flush()


def _show(bar: tqdm, execution: Execution, total: int, epochs: dict[str, int | None]) -> None:
    """How far the trainings that are under way have come counts too. epochs: images of one, by variant, looked up once."""
    parts, fractions = [], 0.0
    for task in list(execution.running):
        name = task.removeprefix("train ")
        training = execution.plan.trainings.get(name) if task.startswith("train ") else None
        last = None if training is None else _last_line(training.run / "metrics.jsonl")
        share = None
        if last is not None and (steps := training.recipe.train.max_steps) is not None:
            share = last["step"] / steps
        elif last is not None:
            if name not in epochs:
                epochs[name] = images_per_epoch(training.recipe)
            share = epochs[name] and last["images_seen"] / (training.recipe.train.epochs * epochs[name])
        fractions += share or 0.0
        parts.append(task if share is None else f"{task} {share:.0%}")
    bar.n = round(total - execution.left - len(parts) + fractions, 2)
    bar.set_postfix_str(", ".join(parts))


def _last_line(metrics: Path) -> dict | None:
    lines = metrics.read_bytes().splitlines(keepends=True) if metrics.is_file() else []
    whole = next((line for line in reversed(lines) if line.endswith(b"\n")), None)
    return None if whole is None else json.loads(whole)


def _list(plan: Plan, progress: Progress, execution: Execution) -> None:
    """What would be done, and the commands."""
    tasks = execution.tasks(1)
    wanted = execution.wanted - execution.blocked.keys()
    for name, training in plan.trainings.items():
        if name in execution.blocked:
            print(f"# {name}: {execution.blocked[name]}")
        elif name in wanted:
            print(f"{'# done: ' if progress.is_trained(training) else ''}{shown(training.command, 'python')}")
    for job in plan.jobs.values():
        if job.variant in wanted:
            print(f"{'# done: ' if progress.is_done(job) else ''}{shown(job.command, 'ddpm-hf')}")
    print(f"# {len(tasks)} trainings and measurements to do; report.md will be in {plan.out}")
