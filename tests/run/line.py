"""A linear regression on numbers made of each step: the smallest program that trains by the verbs of every run."""

from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import nn

from openmae.config import Preprocessing
from openmae.config.dataset import DataSettings
from openmae.data.batch import Batch
from openmae.machine.parallel import parallelise
from openmae.run.batches import Batches
from openmae.run.evaluators import Evaluator
from openmae.run.model_input import ModelInput
from openmae.run.open_run import open_run
from openmae.run.step import accumulated_step
from openmae.training.checkpoint import restore_optimizer
from openmae.training.optim import sgd
from openmae.training.prefetch import inputs_of_steps

SLOPE = torch.tensor([1.0, -2.0, 3.0])
NUMBERS = Preprocessing(channels=1, value_range=(0.0, 1.0), mean=(0.0,), std=(1.0,), image_size=(1, 1))


@dataclass(frozen=True, kw_only=True)
class LineConfig(DataSettings):
    data: str | None = "numbers"
    out: str
    resume: str = "never"
    device: str = "cpu"
    steps: int | None = 20
    epochs: float | None = None
    batch_size: int = 8
    micro_batch_size: int = 3
    log_every: int = 2
    save_every: int = 5
    keep: int = 2
    workers: int = 0
    max_bad: float = 0.0
    size: None = None


def fit_line(config, on_step=lambda step: None):
    with open_run("line", config, LineConfig) as run:
        config = run.requested
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = sgd([{"params": list(model.parameters()), "weight_decay": 0.0}], 0.9)

        def restore_state(checkpoint):
            model.load_state_dict(load_file(checkpoint.folder / "model.safetensors"))
            restore_optimizer(checkpoint.folder, model, optimizer)

        run.restore("numbers", restore_state)
        if (summary := run.finished_summary(config.steps)) is not None:
            return summary
        run.print_plan([f"steps      {config.steps}"])
        run.check_disk(checkpoint_bytes=1000, keep=config.keep)
        run.begin(config, NUMBERS, origins={}, num_images=64, num_inputs=64, description={"kind": "line"})
        wrapped = parallelise(model.train(), run.processes, run.device)

        def read_from(step, micro_batch_size):
            steps = (
                numbers_of(number, config, run.processes, micro_batch_size) for number in range(step, config.steps)
            )
            return inputs_of_steps(
                steps, lambda micro_batch: ModelInput(micro_batch.images, micro_batch.keys), run.device
            )

        def loss_fn(micro_batch):
            error = wrapped(micro_batch.images)[:, 0] - micro_batch.images @ SLOPE
            return error.square().sum() / config.batch_size

        def take_step(micro_batches, step):
            on_step(step)
            return accumulated_step(wrapped, optimizer, micro_batches, loss_fn, run.processes)

        return run.train(
            model=model,
            optimizer=optimizer,
            schedule=lambda step: 0.05,
            batches=Batches(read_from, lambda step: [f"numbers of step {step}"]),
            take_step=take_step,
            evaluators=lambda: [Evaluator(5, lambda step: {"slope": model.weight[0, 0].item()})],
            final_message=lambda summary: f"done       {run.path}",
        )


def numbers_of(step, config, processes, micro_batch_size):
    """This process's micro-batches of a step."""
    values = torch.randn(config.batch_size, 3, generator=torch.Generator().manual_seed(step))
    share, keys = processes.share(config.batch_size), torch.arange(config.batch_size)
    return [Batch(v, k, {}) for v, k in zip(*(x[share].split(micro_batch_size) for x in (values, keys)), strict=True)]
