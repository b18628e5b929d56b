"""Evaluation of a fine-tuned model: while it trains, and at the end."""

import torch

from openmae.data.labels.labelled import LabelledData
from openmae.data.sources.open import Source
from openmae.inference.metrics import Predictions
from openmae.inference.predict import predict
from openmae.machine.parallel import Processes
from openmae.machine.signals import StopRequest
from openmae.model.heads import Classifier
from openmae.planning.finetune import FinetunePlan
from openmae.tasks.classification.classification import named_metrics
from openmae.tasks.finetune.ema_checkpoint import ema_weights
from openmae.training.model_ema import ModelEMA


class FinetuneEvaluation:
    """Predictions for the validation images and the final split, with the EMA's weights where there is an EMA.

    Where these are the same images, for there is no test split or nothing to choose by, the last evaluation is the
    final one.
    """

    def __init__(
        self,
        plan: FinetunePlan,
        data: LabelledData,
        model: Classifier,
        ema: ModelEMA | None,
        device: torch.device,
        processes: Processes,
        stop: StopRequest,
    ) -> None:
        self.plan, self.data, self.model, self.ema = plan, data, model, ema
        self.device, self.processes, self.stop = device, processes, stop
        self.last: tuple[int, Predictions] | None = None  # the step, where it was the final split that was predicted

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics by name after a step; their names begin with `val_` where the final split is another one."""
        data = self.data
        predictions = self._predict(data.validation if data.validation is not None else data.final_source)
        if data.validation is None or data.test is None:
            self.last = step, predictions
            return named_metrics(predictions)
        return named_metrics(predictions, "val_")

    def final_predictions(self, step: int) -> Predictions:
        """Predictions for the final split after the last step, `step`."""
        if self.last is not None and self.last[0] == step:
            return self.last[1]
        return self._predict(self.data.final_source)

    def _predict(self, source: Source) -> Predictions:
        config = self.plan.config
        with ema_weights(self.model, self.ema):
            return predict(
                self.model,
                source,
                self.plan.preprocessing,
                device=self.device,
                precision=config.precision,
                batch_size=config.micro_batch_size,
                workers=config.workers,
                processes=self.processes,
                stop=self.stop,
                scale=self.data.scale,
            )
