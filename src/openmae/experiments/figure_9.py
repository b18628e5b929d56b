"""Figure 9: from the linear probe over the last blocks to full fine-tuning, and from scratch, at shares of the labels.

Every trained run has the same epochs, and its learning rate is chosen from the same rates by a split of train; only
the chosen run is measured on the test split. (The paper takes the best of 50, 100 and 200 epochs for each number of
blocks.)
"""

import contextlib
import io
import shutil
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmae.config import ExperimentConfig, FinetuneConfig, KnnConfig, Preprocessing, ProbeConfig
from openmae.data.decoding.nodata import resolve_nodata
from openmae.data.depths import survey_depths
from openmae.data.labels.labelled import LabelledData, open_labelled
from openmae.data.sources.views import axes_of
from openmae.data.value_scale import match_scale, stated_range, stored_value_range, value_lines
from openmae.errors import RequestError
from openmae.experiments.ledger import Ledger, ProtocolResult, Row
from openmae.experiments.start_figure_9 import create_experiment, read_finished_rows
from openmae.inference.load import load
from openmae.inference.metrics import compute_metrics
from openmae.inference.models import ClassifierModel
from openmae.inference.predict import predict
from openmae.interchange.stored import hash_weights
from openmae.machine.device import default_workers
from openmae.machine.parallel import Processes
from openmae.pictures.curves import Curve, draw_curves
from openmae.run.folder import DATA_PATHS
from openmae.run.lock import check_outside
from openmae.tasks.classification.classification import check_has_final_split
from openmae.tasks.finetune.finetune import finetune
from openmae.tasks.knn import knn
from openmae.tasks.probe.probe import probe

NEVER = 10**9  # steps between evaluations and between checkpoints: all but the last would only cost time
NEIGHBOURS = 10
LEVELS = {"scratch": "from scratch", "kNN": "kNN"}  # drawn as levels: they have no number of fine-tuned blocks


@dataclass(frozen=True, kw_only=True)
class Protocols:
    """The ways of using the encoder that the figure compares, on the same data, with choices by the same split.

    Attributes:
        held_out: images of train to choose by; None where DATA has a val split for that.
        value_range: the setting of every run but those from scratch; decided once, from all splits.
        own_range: the setting of runs from scratch.
        axes: of `.npy` images, decided once as well.
        counts: training images, by the share of the labels.
    """

    config: ExperimentConfig
    model: Any
    data: LabelledData
    held_out: int | None
    value_range: tuple[float, float] | None
    own_range: tuple[float, float]
    axes: str | None
    counts: dict[str, int]

    def fine_tuned(self, labels: str, epochs: float, blocks: float | None, init: str) -> ProtocolResult:
        """Fine-tune with every rate, choose one by val or else a split of train, and measure it on the test split."""
        c, top1 = self.config, {}
        name = f"{labels}-{'scratch' if init == 'none' else 'full' if blocks is None else f'{blocks:g}-blocks'}"
        image_settings = (
            {"value_range": self.value_range} if init != "none" else _from_scratch_settings(self.model, self.own_range)
        )
        for rate in c.base_lr:
            settings = FinetuneConfig(
                **self._shared(labels, f"{name}-{rate:g}"),
                **image_settings,
                init=init,
                report="held-out",
                blocks=blocks,
                epochs=epochs,
                base_lr=rate,
                batch_size=c.batch_size,
                evaluate_every=NEVER,
                save_every=NEVER,
                resume="auto",
            )
            top1[rate] = float(_quietly(finetune, settings)["top1"])
            chosen_on = "val" if self.held_out is None else "the split of train"
            print(f"  {name} {rate:g}: {top1[rate]:.1f} % on {chosen_on}", flush=True)
        best = max(top1, key=lambda rate: top1[rate])
        return [self._final_top1(self._run(f"{name}-{best:g}"))], best, top1[best]

    def _final_top1(self, run: str) -> float:
        """Top-1 of a fine-tuned run on the test split, in per cent."""
        classifier = load(run, self.config.device)
        assert isinstance(classifier, ClassifierModel)
        predictions = predict(
            classifier.classifier,
            self.data.final_source,
            classifier.preprocessing,
            device=classifier.device,
            precision="fp32",
            batch_size=256,
            workers=default_workers(classifier.device),
            processes=Processes(),
        )
        return compute_metrics(predictions)["top1"]

    def probed(self, labels: str) -> ProtocolResult:
        """A linear probe for each seed."""
        c, summaries = self.config, []
        for seed in range(c.seeds):
            settings = ProbeConfig(
                **self._shared(labels, f"{labels}-probe-{seed}"),
                init=c.init,
                value_range=self.value_range,
                seed=seed,
                evaluate_every=NEVER,
                resume="auto",
            )
            summaries.append(_quietly(probe, settings))
        return [float(s["top1"]) for s in summaries], None, statistics.fmean(float(s["choice_top1"]) for s in summaries)

    def neighbours(self, labels: str) -> ProtocolResult:
        """Nearest neighbours; nothing is trained."""
        run = self._run(f"{labels}-knn")
        shutil.rmtree(run, ignore_errors=True)  # of a start that was stopped: kNN is quick and cannot be resumed
        settings = KnnConfig(
            **self._shared(labels, f"{labels}-knn"),
            init=self.config.init,
            k=(min(NEIGHBOURS, self.counts[labels]),),
            value_range=self.value_range,
        )
        return [float(_quietly(knn, settings)["top1"])], None, None

    def _run(self, name: str) -> str:
        return str(Path(self.config.out) / "runs" / name)

    def _shared(self, labels: str, name: str) -> dict[str, Any]:
        """The settings that all commands share."""
        c = self.config
        return {
            **_data_settings(c),
            "out": self._run(name),
            "labels": labels,
            "held_out": self.held_out,
            "axes": self.axes,
            "nodata": c.nodata,
            "device": c.device,
            "workers": c.workers,
        }


def figure_9(config: ExperimentConfig) -> dict[str, Any]:
    """Run what is not finished yet, and write the table and the picture after every row.

    Returns:
        top-1 of every protocol and share, as results.json holds them.

    Raises:
        RequestError: unusable data, or `config.out` holds something else or rows of other settings.
    """
    out = Path(config.out)
    protocols = prepare(config)
    depth = protocols.model.encoder.shape.depth
    with ExitStack() as lock:
        create_experiment(
            out, config, protocols.data.fingerprint, hash_weights(protocols.model.encoder.state_dict()), lock
        )
        ledger = Ledger(
            out,
            config.labels,
            position,
            draw=lambda rows: picture(out / "figure-9.png", rows, depth, config.labels),
            finished=read_finished_rows(out / "results.json"),
        )
        for labels in config.labels:
            ledger.run("kNN", labels, protocols.neighbours)
            ledger.run("probe", labels, protocols.probed)
        for labels, epochs in zip(config.labels, config.epochs, strict=True):
            ledger.run("full", labels, protocols.fine_tuned, epochs, None, config.init)
            ledger.run("scratch", labels, protocols.fine_tuned, epochs, None, "none")
            for blocks in config.blocks:
                ledger.run(f"{blocks:g} blocks", labels, protocols.fine_tuned, epochs, blocks, config.init)
        return ledger.finished


def prepare(config: ExperimentConfig) -> Protocols:
    """Open the model and the data, and check now what would otherwise fail hours later.

    Raises:
        RequestError: a wrong setting or unusable data.
    """
    model = load(config.init, config.device, verbose=True)
    depth = model.encoder.shape.depth
    if too_many := [b for b in config.blocks if b >= depth]:
        raise RequestError(f"--blocks got {too_many[0]:g}: the model has {depth}, and all of them are run anyway")
    check_has_final_split(config.dataset, config.axes, model.preprocessing.axes)
    check_outside(config.dataset, config.out)
    data = _open_data(config, model.preprocessing, None, None)
    held_out = config.held_out if data.validation is None else None  # DATA's own val part chooses
    counts = {labels: len(_open_data(config, model.preprocessing, labels, held_out).train) for labels in config.labels}
    for blocks in config.blocks:
        FinetuneConfig(**_data_settings(config), init=config.init, out=config.out, blocks=blocks)
    # Decided once, from all splits: a share of the labels may happen to hold low values only.
    depths = survey_depths(data.parts)
    matched, lines = match_scale(model.preprocessing, depths, config.value_range, stated=stated_range(data.parts))
    axes = axes_of(data.parts)
    for line in [*axes.lines, *value_lines(lines)]:
        print(line, flush=True)
    value_range = config.value_range or (stored_value_range(matched) if matched.source_dtype in depths.counts else None)
    most_common = max(depths.counts, key=lambda kind: depths.counts[kind], default=None)
    own_range = value_range if value_range and matched.source_dtype == most_common else model.preprocessing.value_range
    return Protocols(
        config=config,
        model=model,
        data=data,
        held_out=held_out,
        value_range=value_range,
        own_range=own_range,
        axes=axes.order,
        counts=counts,
    )


def _open_data(config: ExperimentConfig, p: Preprocessing, labels: str | None, held_out: int | None) -> LabelledData:
    return open_labelled(
        config.dataset,
        labels=labels,
        label_file=None,
        held_out=held_out,
        advice="this experiment measures classes, name them otherwise",
        background=p.background,
        max_pixels=FinetuneConfig.max_pixels,
        axes=config.axes,
        default_axes=p.axes,
        nodata=resolve_nodata(config.nodata, p),
    )


def _data_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that name the data, which all commands share."""
    return {name: getattr(config, name) for name in DATA_PATHS}


def _from_scratch_settings(model: Any, value_range: tuple[float, float]) -> dict[str, Any]:
    """Settings that train a model of the same shape and preprocessing from scratch, on data of this value range."""
    shape, p = model.encoder.shape, model.preprocessing
    return {
        "width": shape.width,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        "patch_size": shape.patch_size,
        "channels": shape.channels,
        "image_size": shape.image_size,
        "mean": p.mean,
        "std": p.std,
        "value_range": value_range,
        "background": p.background,
    }


def _quietly(task: Callable[[Any], dict[str, Any]], config: Any) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):
        return task(config)


def position(protocol: str) -> float:
    """A sort key: by the number of trained blocks, kNN and the probe first, full and from scratch last."""
    return {"kNN": -2.0, "probe": -1.0, "full": 1e6, "scratch": 1e7}.get(protocol) or float(protocol.split()[0])


def picture(path: Path, rows: list[Row], depth: int, labels: tuple[str, ...]) -> None:
    """Draw top-1 over the number of trained blocks, a curve for each share of the labels; the others as levels."""
    curves = []
    for share in labels:
        own = {r.protocol: r for r in rows if r.labels == share}
        blocks = {"probe": 0.0, "full": float(depth)}
        blocks |= {name: float(name.split()[0]) for name in own if name.endswith(" blocks")}
        points = sorted((count, own[name].mean, own[name].spread) for name, count in blocks.items() if name in own)
        levels = {label: own[name].mean for name, label in LEVELS.items() if name in own}
        curves.append(Curve(f"{share} of the labels", points, levels))
    draw_curves(
        path,
        curves,
        list(LEVELS.values()),
        x_label=f"blocks fine-tuned: 0 is the linear probe, {depth} is all",
        y_label="top-1 on the test part, %",
        title="Partial fine-tuning (figure 9)",
    )
