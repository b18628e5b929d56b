"""Figures of a fine-tuning: those that are watched while it trains, and the final one."""

import torch

from openmae.data.labels.labelled import LabelledData
from openmae.data.sources.open import Source
from openmae.inference.metrics import Predictions
from openmae.inference.predict import predict
from openmae.machine.parallel import Processes
from openmae.machine.signals import StopRequest
from openmae.model.heads import Classifier
from openmae.planning.finetune import FinetunePlan
from openmae.tasks.classification.classification import named_figures
from openmae.tasks.finetune.averaged_checkpoint import averaged
from openmae.training.average import Average


class FinetuneMetrics:
    """What the model, or its average, says of the images that are watched and of those that are reported.

    Where these are the same images, for there is no test part or nothing to choose by, the last look is the report.
    """

    def __init__(
        self,
        tuned: FinetunePlan,
        data: LabelledData,
        model: Classifier,
        average: Average | None,
        device: torch.device,
        processes: Processes,
        stop: StopRequest,
    ) -> None:
        self.tuned, self.data, self.model, self.average = tuned, data, model, average
        self.device, self.processes, self.stop = device, processes, stop
        self.seen: tuple[int, Predictions] | None = None

    def evaluated(self, step: int) -> dict[str, float]:
        """Figures by name after a step; their names begin with `val_` where others are reported."""
        data = self.data
        predictions = self._look(data.validation if data.validation is not None else data.final_source)
        if data.validation is None or data.test is None:
            self.seen = step, predictions
            return named_figures(predictions)
        return named_figures(predictions, "val_")

    def reported(self, step: int) -> Predictions:
        """What the final figure, after the last step, is made of."""
        if self.seen is not None and self.seen[0] == step:
            return self.seen[1]
        return self._look(self.data.final_source)

    def _look(self, source: Source) -> Predictions:
        config = self.tuned.config
        with averaged(self.model, self.average):
            return predict(
                self.model,
                source,
                self.tuned.preprocessing,
                device=self.device,
                precision=config.precision,
                batch_size=config.micro_batch_size,
                workers=config.workers,
                processes=self.processes,
                stop=self.stop,
                scale=self.data.scale,
            )
