"""Carrying out a plan, with commands that only pretend."""

import json
import signal
import threading
import time

import pytest

from ddpm_hf.studies.commands import Slot, last_error, slots
from ddpm_hf.studies.progress import Progress
from ddpm_hf.studies.run import Execution

ONE, TWO = [Slot(0, None, 1)], [Slot(0, "0", 1), Slot(1, "1", 1)]


@pytest.fixture
def execute(runner):
    """A function that runs a plan in a session of its own, and gives it back."""

    def run(plan, places=ONE, has_gpu=False, only=None, runner=runner):
        session = Execution(plan, Progress(plan.out), has_gpu, only, runner, say=lambda text: None)
        runner.commands = []
        session.run(places)
        return session

    return run


def measured(runner):
    """Names of what each process of measurements was given, as files are gone by then: by the records it left."""
    return sum(c[1] == "ddpm_hf.studies.measure" for c in runner.commands)


def test_all_is_done_once_and_not_again(make, execute, runner):
    plan = make()
    assert execute(plan).failed == {}
    assert runner.trained == ["large", "tiny"]
    assert measured(runner) == 2  # a process a variant
    assert all(job.out.is_file() for job in plan.jobs.values())
    execute(plan)
    assert runner.commands == []


def test_only_what_changed_is_done_again(make, execute, runner):
    plan = make()
    execute(plan)
    before = {name: job.out.stat().st_mtime_ns for name, job in plan.jobs.items()}

    def redone(plan):
        execute(plan)
        now = {name: job.out.stat().st_mtime_ns for name, job in plan.jobs.items()}
        changed = {name for name in now if now[name] != before.get(name)}
        before.update(now)
        return runner.trained, changed

    assert redone(make(("steps: [5, 10]", "steps: [5, 20]"))) == ([], {"ddim_20"})
    assert redone(make(("text: The larger", "text: Quite the larger"))) == ([], set())
    trained, changed = redone(make(("[16, 32]", "[16, 64]")))
    assert trained == ["tiny"]
    assert changed == {"tiny", "ddim_5", "ddim_10", "tiny, pictures"}
    assert (plan.out / "runs" / "tiny.before-1").is_dir()  # nobody's training is thrown away
    assert redone(make(("[16, 32]", "[16, 64]"), settings={"train.max_steps": "30"}))[0] == ["large", "tiny"]


def test_a_record_that_was_deleted_is_measured_again(make, execute, runner):
    plan = make()
    execute(plan)
    plan.jobs["ddim_5"].out.unlink()
    execute(plan)
    assert runner.trained == []
    assert plan.jobs["ddim_5"].out.is_file()


def test_images_from_elsewhere_are_for_the_training_to_judge(make, execute, runner):
    """It knows them by their content, and says whether they are the same."""
    execute(make())
    execute(make(settings={"data.source": "/elsewhere"}))
    assert runner.trained == ["large", "tiny"]


def test_a_training_that_fails_is_told_and_the_rest_goes_on(make, execute, runner):
    runner.failing["--run.name large"] = 2, "step 3\nerror: out of memory on cuda:0: lower it\n"
    plan = make()
    session = execute(plan)
    assert session.failed["train large"] == "out of memory on cuda:0: lower it"
    assert session.failed["measure large"] == "large could not be trained"
    assert plan.jobs["tiny"].out.is_file()
    assert not plan.jobs["large"].out.is_file()
    assert Progress(plan.out).training("large")["error"] == "out of memory on cuda:0: lower it"
    runner.failing.clear()
    assert execute(plan).failed == {}  # tried again
    assert runner.trained == ["large"]


def test_a_measurement_that_fails_is_told_and_the_others_go_on(make, execute, runner):
    runner.failing["ddim_5"] = 2, "error: too few\n"
    plan = make()
    assert execute(plan).failed == {"ddim_5": "too few"}
    assert plan.jobs["ddim_10"].out.is_file()
    runner.failing.clear()
    execute(plan)
    assert (runner.trained, measured(runner)) == ([], 1)


def test_a_process_that_is_killed_costs_one_measurement(make, execute, runner):
    runner.failing["ddim_5"] = -signal.SIGKILL, ""
    plan = make()
    assert execute(plan).failed == {"ddim_5": "ended by SIGKILL, perhaps for want of memory"}
    assert plan.jobs["tiny"].out.is_file()
    assert plan.jobs["ddim_10"].out.is_file()
    assert measured(runner) == 3  # large, tiny, and what was left of tiny


def test_what_needs_another_variant_waits_for_it_and_fails_with_it(make, execute, runner):
    latents = (
        "  large: {recipe: quickstart, label: the larger}",
        "  large: {recipe: latent/digits, autoencoder: vae}\n  vae: {recipe: latent/digits_autoencoder}",
    )
    order = ("variants:\n", "variants:\n  vae: {recipe: latent/digits_autoencoder}\n")
    plan = make(order, (latents[0], latents[1].partition("\n")[0]))
    execute(plan, TWO)
    assert runner.trained.index("vae") < runner.trained.index("large")
    runner.failing["--run.name vae"] = 1, "boom\n"
    plan = make(order, (latents[0], latents[1].partition("\n")[0]), settings={"train.max_steps": "21"})
    session = execute(plan, TWO)
    assert session.failed["train vae"] == "boom"
    assert session.failed["train large"] == "vae could not be trained"
    assert "train tiny" not in session.failed


def test_what_needs_a_gpu_is_left_out_without_one(make, execute, runner):
    plan = make(("set: {model.block", "needs_gpu: true, set: {model.block"))
    session = execute(plan)
    assert (session.failed, session.blocked) == ({}, {"tiny": "needs a GPU"})
    assert runner.trained == ["large"]
    execute(plan, has_gpu=True)
    assert runner.trained == ["tiny"]


def test_what_may_fail_is_a_result(make, execute, runner):
    runner.failing["--run.name tiny"] = 2, "error: the gradients were not finite\n"
    session = execute(make(("set: {model.block", "may_fail: true, set: {model.block")))
    assert session.failed == {}
    assert session.blocked == {"tiny": "the gradients were not finite"}


def test_some_variants_alone(make, execute, runner):
    execute(make(), only=["tiny"])
    assert runner.trained == ["tiny"]


def test_several_gpus_have_a_variant_each_at_a_time(make, execute, runner):
    together, most, used = [0], [0], set()
    lock, both = threading.Lock(), threading.Barrier(2, timeout=10)

    class Watched(type(runner)):
        def train(self, command):
            with lock:
                together[0] += 1
                most[0] = max(most[0], together[0])
            both.wait()  # each waits for the other, so that they must run at once
            with lock:
                together[0] -= 1
            super().train(command)

    watched = Watched()
    execute(make(), TWO, has_gpu=True, runner=watched)
    used = {environment["CUDA_VISIBLE_DEVICES"] for environment in watched.environments}
    assert most == [2]
    assert used == {"0", "1"}


def test_measurements_of_one_variant_are_shared_out(make, execute, runner):
    plan = make()
    execute(plan, only=["tiny"], places=TWO)
    assert measured(runner) == 2
    assert all(plan.jobs[name].out.is_file() for name in ("tiny", "ddim_5", "ddim_10", "tiny, pictures"))


def test_an_interruption_stops_what_is_not_begun(make, runner):
    """A session is asked to end during its first training; the next goes on."""
    plan, session = make(), None

    class Interrupted(type(runner)):
        def train(self, command):
            session.interrupted = True
            session.stopping.set()

        def __call__(self, command, environment, log):
            super().__call__(command, environment, log)
            return 143

    interrupted = Interrupted()
    session = Execution(plan, Progress(plan.out), False, runner=interrupted, say=lambda text: None)
    session.run(ONE)
    assert interrupted.trained == ["large"]
    assert session.failed == {}
    assert not Progress(plan.out).is_trained(plan.trainings["large"])
    again = Execution(plan, Progress(plan.out), False, runner=runner, say=lambda text: None)
    again.run(ONE)
    assert runner.trained == ["large", "tiny"]
    assert again.failed == {}


def test_a_training_that_is_still_at_work_is_waited_for(make, execute, runner):
    """Of a session that was killed, whose training lives on."""
    from filelock import FileLock

    plan = make()
    run = plan.trainings["large"].run
    run.mkdir(parents=True)
    lock = FileLock(run / ".lock", thread_local=False)
    lock.acquire()
    threading.Timer(1.5, lock.release).start()
    begun = time.monotonic()
    execute(plan, only=["large"])
    assert time.monotonic() - begun > 1.4
    assert runner.trained == ["large"]


def test_the_time_of_all_sessions_is_counted(make, execute):
    plan = make()
    execute(plan)
    first = Progress(plan.out)
    first.note("variants", "large", seconds=10)
    first.note("variants", "large", seconds=5)
    assert Progress(plan.out).training("large")["seconds"] >= 15
    first.content |= {"seconds": 100.0, "processor_seconds": 200.0}
    (plan.out / "progress.json").write_text(json.dumps(first.content))
    Progress(plan.out).save()
    assert Progress(plan.out).seconds >= 100
    assert 200 < Progress(plan.out).processor_seconds < 10_000


def test_slots(monkeypatch):
    from ddpm_hf.studies import commands

    monkeypatch.setattr(commands, "_cores", lambda: 16)
    monkeypatch.setattr(commands, "visible_gpus", lambda: ["3", "5"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    places = slots(None, "small", tasks=9)
    assert [p.environment for p in places] == [
        {"CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "8"},
        {"CUDA_VISIBLE_DEVICES": "5", "OMP_NUM_THREADS": "8"},
    ]
    assert [p.gpu for p in slots(3, "small", tasks=9)] == ["3", "5", "3"]
    monkeypatch.setattr(commands, "visible_gpus", list)
    assert len(slots(None, "small", tasks=9)) == 8
    assert len(slots(None, "small", tasks=3)) == 3
    assert [p.threads for p in slots(None, "full", tasks=9)] == [16]


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("10%\r20%\rerror: too many\n\n", 2, "too many"),
        ("Traceback\n  File\nValueError: broken\n", 1, "ValueError: broken"),
        ("", 3, "ended with exit code 3"),
        ("words\n", -15, "ended by SIGTERM"),
    ],
)
def test_why_a_command_failed(tmp_path, text, code, told):
    log = tmp_path / "log"
    log.write_text(f"error: of an earlier session\n{text}")
    assert last_error(log, len("error: of an earlier session\n"), code) == told
