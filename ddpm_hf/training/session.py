"""One training session: assembles the parts, resumes, and runs the loop with its regular events."""

import math
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from ddpm_hf.config import AnyRecipe
from ddpm_hf.data.dataset import as_it_is
from ddpm_hf.data.sampler import SampleOrder
from ddpm_hf.errors import ProcessError, UserError
from ddpm_hf.evaluation.records import write_record
from ddpm_hf.training.autoencoding import Autoencoding
from ddpm_hf.training.checkpoints import Checkpoint, Checkpoints, load_optimizer_tensors, optimizer_tensors
from ddpm_hf.training.denoising import Denoising
from ddpm_hf.training.ema import EMA
from ddpm_hf.training.examples import Examples
from ddpm_hf.training.loop import Event, Progress, training_loop
from ddpm_hf.training.optimization import build_optimizer, learning_rate
from ddpm_hf.training.origins import found_here
from ddpm_hf.training.run_folder import RunFolder
from ddpm_hf.training.signals import StopRequest
from ddpm_hf.training.tracking import Meter, Tracking


class Session:
    """Everything that one run needs, built from its recipe; `train` runs it to its end.

    What is trained, validated, drawn and left behind is the task's; how, for how long and with which records, is here.
    """

    def __init__(
        self,
        recipe: AnyRecipe,
        task: Denoising | Autoencoding,
        examples: Examples,
        run: RunFolder,
        accelerator: Accelerator,
        push: Callable[[Progress], None] | None = None,  # what is published, as recipe.hub says
    ) -> None:
        train = recipe.train
        self.recipe, self.task, self.examples, self.accelerator = recipe, task, examples, accelerator
        self.run, self.push = run, push
        self.checkpoints = Checkpoints(self.run.checkpoints, train.keep_checkpoints)

        memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
        self.model = task.model.to(accelerator.device, memory_format=memory_format).train()
        if train.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        self.ema = EMA(self.model, recipe.ema)
        self.ema.model.disable_gradient_checkpointing()
        self.optimizer = build_optimizer(train, self.model)
        self.scaler = accelerator.scaler or torch.amp.GradScaler(enabled=False)

        self.batch = train.batch_size * train.gradient_accumulation_steps * accelerator.num_processes
        self.steps_per_epoch = len(examples.train_indices) / self.batch
        self.max_steps = train.max_steps or math.ceil(train.epochs * self.steps_per_epoch)
        self.progress = task.progress = Progress()
        self.saved_step = 0
        self.validation: tuple[int, float] | tuple[None, None] = (None, None)  # step and loss of the last one
        self.meter = Meter(accelerator)

    # ---- checkpoints

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint, if there is one; says what will not be exactly as before."""
        found = self._newest_checkpoint()
        if found is None:
            if self.accelerator.is_main_process:
                self.run.write_recipe(self.recipe)
                self.run.forget_metrics_after(0)
            return
        state = found.state
        self.run.check_recipe(self.recipe, state["images_per_step"], self.accelerator.num_processes)
        store = self.examples.store
        self.run.check_origin(self.recipe, state, store.class_names, self.task.codec.identity)
        if state["images"] != store.content:
            if self.task.codec.vae is None or state["source"] != store.fingerprint["source"]:
                raise UserError(
                    f"data.source: its images are not those that {self.run.path} was trained on; use the same, or another --run.name"
                )
            self.accelerator.print(
                "the latents were encoded anew, perhaps on other hardware: no longer bit for bit what the run would have been"
            )
        self._load(found)
        for what, before, now in (
            ("processes", state["processes"], self.accelerator.num_processes),
            ("images a step", state["images_per_step"], self.batch),
        ):
            if before != now:
                self.accelerator.print(
                    f"resuming with {now} {what} instead of {before}: no longer bit for bit what the run would have been"
                )
        if self.accelerator.is_main_process:
            self.run.write_recipe(self.recipe)
            self.run.forget_metrics_after(self.progress.step)
        if self.progress.step < self.max_steps:
            self.accelerator.print(f"resuming {self.run.path} at step {self.progress.step} of {self.max_steps}")

    def _newest_checkpoint(self) -> Checkpoint | None:
        """The main process decides, so that all go on from the same one even where a shared disk is slow to show it."""

        def find() -> int | None:
            found = self.checkpoints.latest(print)
            return found and found.step

        step = self._on_main_process(find)
        return None if step is None else self.checkpoints.at(step)

    def _on_main_process(self, action: Callable[[], Any]) -> Any:
        """What `action` returns on the main process, on all; or the `UserError` that it raises, so that none waits for it."""
        outcome = [None, None]
        if self.accelerator.is_main_process:
            try:
                outcome[0] = action()
            except UserError as error:
                outcome[1] = str(error)
        result, error = broadcast_object_list(outcome)
        if error is not None:
            raise UserError(error)
        return result

    def _load(self, checkpoint: Checkpoint) -> None:
        self.model.load_state_dict(checkpoint.tensors("model"))
        self.ema.model.load_state_dict(checkpoint.tensors("ema"))
        load_optimizer_tensors(self.optimizer, self.model, checkpoint.tensors("optimizer"))
        if self.task.state():
            self.task.load_state(checkpoint.tensors("objective"))
        self.progress.step, self.progress.images_seen = checkpoint.state["step"], checkpoint.state["images_seen"]
        self.saved_step = self.progress.step
        self.meter.skipped += checkpoint.state["skipped_steps"]
        self.meter.seconds_before = checkpoint.state["training_seconds"]
        if checkpoint.state["gradient_scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.state["gradient_scaler"])

    def save_checkpoint(self, progress: Progress) -> None:
        """Pipeline and checkpoint; put off while steps are being skipped, since what came before may be the cure."""
        self._stop_if_diverged()
        if self.meter.skipped_in_a_row.item() and progress.step < self.max_steps:
            self.accelerator.print(f"no checkpoint at step {progress.step}: its gradients were not finite")
            return
        self._on_main_process(lambda: self._write(progress))

    def _write(self, progress: Progress) -> None:
        tensors = {
            "model": dict(self.model.state_dict()),
            "ema": dict(self.ema.model.state_dict()),
            "optimizer": optimizer_tensors(self.optimizer, self.model),
        }
        if objective := self.task.state():
            tensors["objective"] = objective
        if not all(t.isfinite().all() for named in tensors.values() for t in named.values()):
            raise UserError(
                f"weights are no longer finite at step {progress.step}; they are not saved, lower train.learning_rate and run again"
            )
        validated_at, validation_loss = self.validation
        state = {
            "step": progress.step,
            "images_seen": progress.images_seen,
            "images_per_step": self.batch,
            "processes": self.accelerator.num_processes,
            "skipped_steps": int(self.meter.skipped.item()),
            "training_seconds": self.meter.training_seconds,
            "validation_loss": validation_loss if validated_at == progress.step else None,
            "gradient_scaler": self.scaler.state_dict(),
            "class_names": self.examples.store.class_names,
            "images": self.examples.store.content,
            "source": self.examples.store.fingerprint["source"],
            "autoencoder": self.task.codec.identity,
            "here": found_here(self.recipe),
        }
        product = {self.task.product: self.task.saved_tensors(self.ema.model)}
        self.checkpoints.check_space(progress.step, tensors | product)
        self.run.replace(
            self.task.product, partial(self.task.save, self.ema.model, done=progress.step >= self.max_steps)
        )
        self.checkpoints.save(state, tensors)
        self.saved_step = progress.step

    def _stop_if_diverged(self) -> None:
        if self.meter.skipped_in_a_row.item() >= self.recipe.train.max_nonfinite_steps:
            raise UserError(
                f"the gradients of the last {self.recipe.train.max_nonfinite_steps} steps were not finite; the last checkpoint is not touched by them;"
                " lower train.learning_rate, set train.max_grad_norm, or take bf16 or float32 instead of fp16"
            )

    # ---- what happens every so often

    def log(self, progress: Progress) -> None:
        rate = learning_rate(self.recipe.train, progress.step - 1, self.max_steps, self.steps_per_epoch)
        values = self.meter.read()
        self.tracking.log({"step": progress.step, "images_seen": progress.images_seen, "learning_rate": rate, **values})
        self._stop_if_diverged()

    def validate(self, progress: Progress) -> None:
        """The EMA weights on images that are not trained on."""
        measured = self.task.validate(self.ema.model)
        self.validation = (progress.step, measured["validation_loss"])
        self.tracking.log({"step": progress.step, "images_seen": progress.images_seen, **measured})

    def evaluate(self, progress: Progress) -> None:
        """Images drawn with the EMA weights, compared with real ones; a record of it in the run folder."""
        evaluation, record, settings = self.task.evaluate(self.ema.model)

        def keep() -> None:
            model = {"model": str(self.run.path), "step": progress.step, "images_seen": progress.images_seen}
            if evaluation.frechet is not None:
                self.checkpoints.note_evaluation(progress.step, evaluation.frechet, settings)
            write_record(self._record_of(progress), model | record)

        self._on_main_process(keep)
        self.tracking.log({"step": progress.step, "images_seen": progress.images_seen, **evaluation.values})

    def _record_of(self, progress: Progress) -> Path:
        return self.run.evaluations / f"step-{progress.step:08d}.json"

    def _evaluation_is_missing(self) -> bool:
        """Whether a run ended between a checkpoint and its evaluation, which may take longer than a signal leaves time for."""
        every, step = self.task.evaluate_every, self.progress.step
        due = every is not None and step > 0 and step % every == 0
        return due and self._on_main_process(lambda: not self._record_of(self.progress).is_file())

    def draw_samples(self, progress: Progress) -> None:
        """A picture of the same seeds or images each time."""
        picture = self.task.picture(self.ema.model)
        if self.accelerator.is_main_process:
            self.run.samples.mkdir(exist_ok=True)
            picture.save(self.run.samples / f"step-{progress.step:08d}.png")
            self.tracking.log_picture(picture, progress.step)

    # ---- training

    def train(self) -> None:
        """Resumes, and trains to the end; a signal ends it after a saved step, with the exit code that belongs to it.

        The run stays held: a last push may follow.
        """
        self.resume()
        if self.progress.step >= self.max_steps:
            self.accelerator.print(
                f"{self.run.path} is already trained to step {self.progress.step}; a larger train.max_steps goes on"
            )
            if self.push is not None and self.progress.step > 0:  # what an earlier training could not push
                self.push(self.progress)
            return
        if self.task.evaluate_every is not None:
            self.task.prepare_evaluation()
        train, run_seed = self.recipe.train, self.recipe.run.seed
        order = SampleOrder(
            self.examples.train_indices,
            train.batch_size,
            run_seed,
            self.progress.images_seen,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        loader = DataLoader(
            self.examples.training,
            batch_sampler=order,
            collate_fn=as_it_is,
            num_workers=self.recipe.data.workers,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),
        )
        self.tracking = Tracking(self.recipe, self.run, self.accelerator, self.progress.step, self.max_steps)
        stop = StopRequest()

        def paused(action):
            def event(progress: Progress) -> None:
                with self.meter.paused():
                    action(progress)

            return event

        events = [
            Event(1, lambda _: self.tracking.bar.update()),
            Event(self.recipe.track.log_every, self.log, on_stop=True),
        ]
        if len(self.examples.validation_indices):
            events.append(Event(train.validate_every or train.checkpoint_every, paused(self.validate)))
        events.append(Event(self.recipe.sample.every or train.checkpoint_every, paused(self.draw_samples)))
        # after what is quick, so that it has been done where its checkpoint is resumed from
        events.append(Event(train.checkpoint_every, paused(self.save_checkpoint), on_stop=True))
        if self.task.evaluate_every is not None:
            events.append(Event(self.task.evaluate_every, paused(self.evaluate)))
            if self._evaluation_is_missing():
                self.evaluate(self.progress)
        if self.push is not None:
            events.append(Event(self.recipe.hub.push_every or self.max_steps, paused(self.push)))
        self.meter.restart()
        try:
            training_loop(
                model=self.model,
                wrapped=self.accelerator.prepare_model(self.model),
                objective=self.task.objective,
                codec=self.task.codec,
                batches=iter(loader),
                optimizer=self.optimizer,
                scaler=self.scaler,
                ema=self.ema,
                accelerator=self.accelerator,
                meter=self.meter,
                progress=self.progress,
                max_steps=self.max_steps,
                accumulation=train.gradient_accumulation_steps,
                seed=run_seed,
                learning_rate=lambda step: learning_rate(train, step, self.max_steps, self.steps_per_epoch),
                max_grad_norm=train.max_grad_norm or math.inf,
                events=events,
                stop_requested=stop,
            )
        except torch.OutOfMemoryError:
            raise ProcessError(
                f"out of memory on {self.accelerator.device}: halve train.batch_size ({train.batch_size}) and double"
                f" train.gradient_accumulation_steps ({train.gradient_accumulation_steps}) for the same result, or set train.gradient_checkpointing or train.precision: bf16"
            ) from None
        finally:
            stop.restore()
            self.tracking.close()
        if self.progress.step < self.max_steps:
            self.accelerator.print(
                f"stopped; saved at step {self.saved_step} of {self.max_steps}; the same command goes on from there"
            )
            raise SystemExit(128 + stop.signal)
        self.accelerator.print(
            f"trained to step {self.progress.step}: {self.run.samples} shows how, {self.run.path / self.task.product} is"
            f" the model; {self.task.next_command(self.run.path)}"
        )


def _leave_signals_to_the_parent(_worker: int) -> None:
    """A signal to the whole group would end the workers that the last step and its batches still need."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
