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

    execution = Execution(plan, progress, has_gpu, options.only, say=tqdm.write)
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
            execution.run(places, lambda: _show(bar, execution, len(tasks)))
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


def _show(bar: tqdm, execution: Execution, total: int) -> None:
    """How far the trainings that are under way have come counts too."""
    parts, fractions = [], 0.0
    for task in list(execution.running):
        name = task.removeprefix("train ")
        training = execution.plan.trainings.get(name) if task.startswith("train ") else None
        share = None if training is None else _share(training.run / "metrics.jsonl", training.recipe)
        fractions += share or 0.0
        parts.append(task if share is None else f"{task} {share:.0%}")
    bar.n = round(total - execution.left - len(parts) + fractions, 2)
    bar.set_postfix_str(", ".join(parts))


def _share(metrics: Path, recipe) -> float | None:
    """How much of a training is done."""
    if not metrics.is_file() or not (lines := metrics.read_bytes().splitlines(keepends=True)):
        return None
    line = next((line for line in reversed(lines) if line.endswith(b"\n")), None)
    if line is None:
        return None
    last = json.loads(line)
    if recipe.train.max_steps is not None:
        return last["step"] / recipe.train.max_steps
    epoch = images_per_epoch(recipe)
    return last["images_seen"] / (recipe.train.epochs * epoch) if epoch else None


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
