"""Figure 9: from the linear probe over the last blocks to full fine-tuning, and from scratch, at shares of the labels.

Every trained run has the same epochs and chooses among the same rates by a split of train; only what was chosen
is measured on the test part. (The paper takes the best of 50, 100 and 200 epochs for each number of blocks.)
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
from openmae.experiments.ledger import Found, Ledger, Row
from openmae.experiments.start import begin, kept_rows
from openmae.inference.load import load
from openmae.inference.metrics import figures
from openmae.inference.models import ClassifierModel
from openmae.inference.predict import predict
from openmae.interchange.stored import hash_of
from openmae.machine.device import default_workers
from openmae.machine.parallel import Processes
from openmae.pictures.curves import Curve, draw_curves
from openmae.run.folder import PLACES, check_outside
from openmae.tasks.classification.classification import check_reported
from openmae.tasks.finetune.finetune import finetune
from openmae.tasks.knn import knn
from openmae.tasks.probe.probe import probe

NEVER = 10**9  # steps: evaluations and checkpoints but the last would only cost time
NEIGHBOURS = 10
LEVELS = {"scratch": "from scratch", "kNN": "kNN"}  # protocols that train no number of blocks


@dataclass(frozen=True, kw_only=True)
class Protocols:
    """The ways of using the encoder that the figure compares, on the same data and choosing by the same split.

    Attributes:
        held_out: images of train that choose; None where DATA's own val part does.
        value_range: as every run but those from scratch is told; decided once, of all parts.
        own_range: as runs from scratch are told.
        axes: of `.npy` images, likewise.
        counts: images that train, by the share of the labels.
    """

    config: ExperimentConfig
    model: Any
    data: LabelledData
    held_out: int | None
    value_range: tuple[float, float] | None
    own_range: tuple[float, float]
    axes: str | None
    counts: dict[str, int]

    def fine_tuned(self, labels: str, epochs: float, blocks: float | None, init: str) -> Found:
        """Train with every rate, choose by val or else a split of train, measure the chosen on the test part."""
        c, found = self.config, {}
        name = f"{labels}-{'scratch' if init == 'none' else 'full' if blocks is None else f'{blocks:g}-blocks'}"
        of_images = {"value_range": self.value_range} if init != "none" else _shape_of(self.model, self.own_range)
        for rate in c.base_lr:
            settings = FinetuneConfig(
                **self._shared(labels, f"{name}-{rate:g}"),
                **of_images,
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
            found[rate] = float(_quietly(finetune, settings)["top1"])
            chooses = "val" if self.held_out is None else "the split of train"
            print(f"  {name} {rate:g}: {found[rate]:.1f} % on {chooses}", flush=True)
        best = max(found, key=lambda rate: found[rate])
        return [self._measured(self._run(f"{name}-{best:g}"))], best, found[best]

    def _measured(self, run: str) -> float:
        """Top-1 of a fine-tuned run on the test part."""
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
        return figures(predictions)["top1"]

    def probed(self, labels: str) -> Found:
        """A linear probe of each seed."""
        c, found = self.config, []
        for seed in range(c.seeds):
            settings = ProbeConfig(
                **self._shared(labels, f"{labels}-probe-{seed}"),
                init=c.init,
                value_range=self.value_range,
                seed=seed,
                evaluate_every=NEVER,
                resume="auto",
            )
            found.append(_quietly(probe, settings))
        return [float(s["top1"]) for s in found], None, statistics.fmean(float(s["choice_top1"]) for s in found)

    def neighbours(self, labels: str) -> Found:
        """Nothing is trained."""
        run = self._run(f"{labels}-knn")
        shutil.rmtree(run, ignore_errors=True)  # left by a stop: it is quick, and never goes on
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
        """What all commands are told alike."""
        c = self.config
        return {
            **_places(c),
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
        begin(out, config, protocols.data.fingerprint, hash_of(protocols.model.encoder.state_dict()), lock)
        ledger = Ledger(
            out,
            config.labels,
            position,
            draw=lambda rows: picture(out / "figure-9.png", rows, depth, config.labels),
            kept=kept_rows(out / "results.json"),
        )
        for labels in config.labels:
            ledger.run("kNN", labels, protocols.neighbours)
            ledger.run("probe", labels, protocols.probed)
        for labels, epochs in zip(config.labels, config.epochs, strict=True):
            ledger.run("full", labels, protocols.fine_tuned, epochs, None, config.init)
            ledger.run("scratch", labels, protocols.fine_tuned, epochs, None, "none")
            for blocks in config.blocks:
                ledger.run(f"{blocks:g} blocks", labels, protocols.fine_tuned, epochs, blocks, config.init)
        return ledger.kept


def prepare(config: ExperimentConfig) -> Protocols:
    """Open the model and the data, and refuse now what would be refused hours later.

    Raises:
        RequestError: a wrong setting or unusable data.
    """
    model = load(config.init, config.device, say=True)
    depth = model.encoder.shape.depth
    if too_many := [b for b in config.blocks if b >= depth]:
        raise RequestError(f"--blocks got {too_many[0]:g}: the model has {depth}, and all of them are run anyway")
    check_reported(config.dataset, config.axes, model.preprocessing.axes)
    check_outside(config.dataset, config.out)
    data = _opened(config, model.preprocessing, None, None)
    held_out = config.held_out if data.validation is None else None  # DATA's own val part chooses
    counts = {labels: len(_opened(config, model.preprocessing, labels, held_out).train) for labels in config.labels}
    for blocks in config.blocks:
        FinetuneConfig(**_places(config), init=config.init, out=config.out, blocks=blocks)
    # Decided once, of all parts: a share of the labels may hold lower values only.
    depths = survey_depths(data.parts)
    matched, lines = match_scale(model.preprocessing, depths, config.value_range, stated=stated_range(data.parts))
    axes = axes_of(data.parts)
    for line in [*axes.lines, *value_lines(lines)]:
        print(line, flush=True)
    value_range = config.value_range or (stored_value_range(matched) if matched.source_dtype in depths.counts else None)
    most = max(depths.counts, key=lambda kind: depths.counts[kind], default=None)
    own_range = value_range if value_range and matched.source_dtype == most else model.preprocessing.value_range
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


def _opened(config: ExperimentConfig, p: Preprocessing, labels: str | None, held_out: int | None) -> LabelledData:
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


def _places(config: ExperimentConfig) -> dict[str, Any]:
    """Where the data lie, as every command is told."""
    return {name: getattr(config, name) for name in PLACES}


def _shape_of(model: Any, value_range: tuple[float, float]) -> dict[str, Any]:
    """The same model and preprocessing, for training from scratch on data of this range."""
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
    """By the number of trained blocks: kNN and the probe first, all and from scratch last."""
    return {"kNN": -2.0, "probe": -1.0, "full": 1e6, "scratch": 1e7}.get(protocol) or float(protocol.split()[0])


def picture(path: Path, rows: list[Row], depth: int, labels: tuple[str, ...]) -> None:
    """Top-1 over the number of trained blocks, a line a share of the labels; from scratch and kNN as levels."""
    curves = []
    for share in labels:
        own = {r.protocol: r for r in rows if r.labels == share}
        places = {"probe": 0.0, "full": float(depth)}
        places |= {name: float(name.split()[0]) for name in own if name.endswith(" blocks")}
        points = sorted((place, own[name].mean, own[name].spread) for name, place in places.items() if name in own)
        levels = {words: own[name].mean for name, words in LEVELS.items() if name in own}
        curves.append(Curve(f"{share} of the labels", points, levels))
    draw_curves(
        path,
        curves,
        list(LEVELS.values()),
        x_label=f"blocks fine-tuned: 0 is the linear probe, {depth} is all",
        y_label="top-1 on the test part, %",
        title="Partial fine-tuning (figure 9)",
    )
