"""Carries out a plan: trainings and measurements, several at once, each at most once; a failure ends only what needs it."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ddpm_hf.durations import rough_duration
from ddpm_hf.studies.commands import Processes, Runner, Slot, last_error
from ddpm_hf.studies.plan import Job, Plan, Training, shown
from ddpm_hf.studies.progress import Progress

INTERRUPTED = (130, 143, -signal.SIGINT, -signal.SIGTERM)  # exit codes of what was asked to end


@dataclass(frozen=True)
class Task:
    """A training, or jobs of one variant that share a process. needs: variants that must be trained before."""

    name: str
    needs: frozenset[str]
    action: Callable[[Slot], None]
    trains: str | None = None


class Execution:
    """One session of a study.

    failed: task or job → why; blocked: variant → what it lacks, or why it may fail; running: tasks at work, by name
    """

    def __init__(
        self,
        plan: Plan,
        progress: Progress,
        has_gpu: bool,
        only: Iterable[str] | None = None,
        runner: Runner | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.plan, self.progress, self.has_gpu, self.say = plan, progress, has_gpu, say
        self.processes = Processes()
        self.runner = runner or self.processes
        self.running: list[str] = []
        self.left = 0  # tasks, those that run included
        self.wanted = set(plan.variants if only is None else only)
        for name in list(self.wanted):  # an autoencoder before what needs it
            if name in plan.trainings and plan.trainings[name].needs:
                self.wanted.add(plan.trainings[name].needs)
            elif name in plan.pipelines and plan.trainings:
                self.wanted.add(next(iter(plan.trainings)))
        self.failed: dict[str, str] = {}
        self.blocked: dict[str, str] = {}
        self.interrupted = False
        self.stopping = threading.Event()
        self._condition = threading.Condition()
        self._trained: set[str] = set()
        self._not_trained: set[str] = set()

    # ---- what there is to do

    def tasks(self, workers: int) -> list[Task]:
        """What is not done yet, in order; jobs of a variant are shared out where there are workers to spare."""
        plan, progress, tasks = self.plan, self.progress, []
        for name, training in plan.trainings.items():
            if name not in self.wanted:
                continue
            if training.needs_gpu and not self.has_gpu:
                self.blocked[name] = "needs a GPU"
                self._not_trained.add(name)
            elif progress.is_trained(training):
                self._trained.add(name)
            else:
                needs = frozenset(filter(None, [training.needs]))
                tasks.append(Task(f"train {name}", needs, lambda slot, t=training: self._train(t, slot), trains=name))
        retrained = {task.trains for task in tasks}
        pending: dict[str, list[Job]] = {}
        for job in plan.jobs.values():
            done = progress.is_done(job) and job.variant not in retrained
            if job.variant in self.wanted and job.variant not in self.blocked and not done:
                pending.setdefault(job.variant, []).append(job)
        for variant, jobs in pending.items():
            shares = max(1, min(len(jobs), workers // len(pending)))
            for i in range(shares):
                share = jobs[i::shares]
                name = f"measure {variant}" + (f", {i + 1} of {shares}" if shares > 1 else "")
                needs = frozenset().union(*(job.needs for job in share))
                log = plan.out / "logs" / f"{variant}-measured{f'-{i + 1}' if shares > 1 else ''}.log"
                tasks.append(Task(name, needs, lambda slot, s=share, g=log: self._measure(s, slot, g)))
        return tasks

    # ---- doing it

    def run(self, slots: list[Slot], tick: Callable[[], None] = lambda: None) -> None:
        """Until all is done, or an interruption. `tick` is called every so often meanwhile."""
        pending = self.tasks(len(slots))
        self.left = len(pending)

        def work(slot: Slot) -> None:
            while (task := self._next(pending)) is not None:
                try:
                    task.action(slot)
                except Exception as error:  # of the study itself; what runs besides goes on
                    self._fail(task.name, f"{type(error).__name__}: {error}")
                with self._condition:
                    self.running.remove(task.name)
                    self.left -= 1
                    if task.trains and task.trains not in self._trained:
                        self._not_trained.add(task.trains)
                    self._condition.notify_all()

        threads = [threading.Thread(target=work, args=(slot,), daemon=True) for slot in slots]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            try:
                for thread in threads:
                    thread.join(0.5 / len(threads))
                tick()
            except KeyboardInterrupt:
                again = self.interrupted
                self.interrupted = True
                self.stopping.set()
                self.say("ending at once" if again else "stopping: trainings save first; Ctrl-C again ends at once")
                self.processes.stop(kill=again)
        self.progress.save()

    def _next(self, pending: list[Task]) -> Task | None:
        with self._condition:
            while pending and not self.stopping.is_set():
                for task in pending:
                    if lacking := task.needs & self._not_trained:
                        pending.remove(task)
                        self.left -= 1
                        if task.trains:
                            self._not_trained.add(task.trains)
                        if not lacking & self.blocked.keys():
                            self._fail(task.name, f"{', '.join(sorted(lacking))} could not be trained")
                        break
                    if task.needs <= self._trained:
                        pending.remove(task)
                        self.running.append(task.name)
                        return task
                else:
                    if not self.running:  # nothing will make them possible
                        for task in pending:
                            self._fail(task.name, f"{', '.join(sorted(task.needs - self._trained))} is not trained")
                        pending.clear()
                    else:
                        self._condition.wait(0.2)
            return None

    def _train(self, training: Training, slot: Slot) -> None:
        name, progress = training.variant, self.progress
        before = progress.training(name).get("identity")
        if before is not None and before != training.identity and training.run.exists():
            aside = _free_name(training.run)
            training.run.rename(aside)
            self.say(f"{name}: its settings have changed; the old run is now {aside}")
        progress.note("variants", name, identity=training.identity, source=training.source, done=False, error=None)
        self._wait_for(training.run)
        log = self._log(self.plan.out / "logs" / f"{name}.log")
        start, begun = log.stat().st_size, time.perf_counter()
        _write_line(log, f"$ {shown(training.command, 'python')}")
        code = self.runner(training.command, slot.environment, log)
        seconds = time.perf_counter() - begun
        if code in INTERRUPTED and self.stopping.is_set():
            progress.note("variants", name, seconds)
            return
        if code == 0:
            progress.note("variants", name, seconds, done=True)
            with self._condition:
                self._trained.add(name)
            self.say(f"{name}: trained, in {rough_duration(seconds)}")
            return
        error = last_error(log, start, code)
        progress.note("variants", name, seconds, error=error)
        if training.may_fail:
            self.say(f"{name}: could not be trained, which is a result: {error}")
            with self._condition:
                self._not_trained.add(name)
                self.blocked[name] = error
        else:
            self._fail(f"train {name}", error)

    def _measure(self, jobs: list[Job], slot: Slot, log: Path) -> None:
        """All jobs in one process; where it breaks, the one it broke in has failed, and another goes on."""
        self._log(log)
        remaining = {job.name: job for job in jobs}
        for job in jobs:
            job.out.unlink(missing_ok=True)
            job.out.parent.mkdir(parents=True, exist_ok=True)
            self.progress.note("jobs", job.name, asked=job.asked, error=None)
        listed, results = log.with_suffix(".json"), log.with_suffix(".jsonl")
        while remaining and not self.stopping.is_set():
            results.unlink(missing_ok=True)
            listed.write_text(json.dumps([{"name": j.name, "command": j.command} for j in remaining.values()]))
            start, begun = log.stat().st_size, time.perf_counter()
            code = self.runner(["-m", "ddpm_hf.studies.measure", str(listed)], slot.environment, log)
            ended = _lines(results)
            for one in ended:
                self._measured(remaining.pop(one["name"]), one["error"], one["seconds"])
            if remaining and not self.stopping.is_set() and not (ended and ended[-1]["broken"]):
                culprit = remaining.pop(next(iter(remaining)))
                self._measured(culprit, last_error(log, start, code), time.perf_counter() - begun)
        for leftover in (listed, results):
            leftover.unlink(missing_ok=True)

    def _measured(self, job: Job, error: str | None, seconds: float) -> None:
        if error is None and not job.out.is_file():
            error = f"left no {job.out}"
        self.progress.note("jobs", job.name, seconds, error=error)
        if error is None:
            done = "measured" if job.command[0] == "evaluate" else "drawn"
            self.say(f"{job.name}: {done}, in {rough_duration(seconds)}")
        else:
            self._fail(job.name, error)

    def _fail(self, what: str, error: str) -> None:
        self.failed[what] = error
        self.say(f"{what}: failed: {error}")

    def _log(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    def _wait_for(self, run: Path) -> None:
        """Where a training of an earlier, killed session is still at work in the run folder."""
        if not run.is_dir():
            return
        lock, told = FileLock(run / ".lock"), False
        while not self.stopping.is_set():
            try:
                lock.acquire(timeout=1)
            except Timeout:
                if not told:
                    self.say(f"waiting for a training that is still at work in {run}")
                told = True
            else:
                lock.release()
                return


def _free_name(path: Path) -> Path:
    return next(p for i in range(1, 10**6) if not (p := path.with_name(f"{path.name}.before-{i}")).exists())


def _write_line(path: Path, text: str) -> None:
    with open(path, "a") as file:
        file.write(f"{text}\n")


def _lines(path: Path) -> list[dict]:
    """Of a file of JSON lines; the last may be cut short."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
