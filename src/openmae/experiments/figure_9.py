"""Figure 9: from the linear probe over the last blocks to full fine-tuning, and from scratch, at shares of the labels.

Every trained run has the same epochs and chooses among the same rates by a split of train; only what was chosen
is measured on the test part. (The paper takes the best of 50, 100 and 200 epochs for each number of blocks.)
"""

import contextlib
import csv
import io
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmae.config import ExperimentConfig, FinetuneConfig, KnnConfig, ProbeConfig
from openmae.data.decoding.nodata import nodata_of
from openmae.data.depths import look_at_depths
from openmae.data.labels.labelled import LabelledData, open_labelled
from openmae.data.scale import match_scale, range_for, stated_range, value_lines
from openmae.data.sources.views import axes_of
from openmae.errors import RequestError
from openmae.experiments.start import begin, kept_rows
from openmae.inference.load import ClassifierModel, load
from openmae.inference.metrics import figures
from openmae.inference.predict import predict
from openmae.interchange.stored import hash_of
from openmae.machine.device import default_workers
from openmae.machine.files import disk_faults, write_json, written_aside
from openmae.machine.parallel import Processes
from openmae.run.folder import PLACES
from openmae.run.training_data import check_outside
from openmae.tasks.classification.classification import check_reported
from openmae.tasks.finetune.finetune import finetune
from openmae.tasks.knn import knn
from openmae.tasks.probe.probe import probe

NEVER = 10**9  # steps: evaluations and checkpoints but the last would only cost time
NEIGHBOURS = 10

# Top-1 on the test part of each seed, the chosen rate, and top-1 on the split that chose it.
Found = tuple[list[float], float | None, float | None]


@dataclass(frozen=True)
class Row:
    """A protocol at a share of the labels: top-1 in per cent on the test part, of each seed; what chose it."""

    protocol: str
    labels: str
    top1: list[float]
    base_lr: float | None
    chosen_by: float | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.top1)

    @property
    def words(self) -> str:
        if len(self.top1) == 1:
            return f"{self.mean:.1f}"
        return f"{self.mean:.1f} ± {statistics.stdev(self.top1):.1f}"


def figure_9(config: ExperimentConfig) -> dict[str, Any]:
    """Run what is not finished yet, and write the table and the picture after every row.

    Returns:
        top-1 of every protocol and share, as results.json holds them.

    Raises:
        RequestError: unusable data, or `config.out` holds something else or rows of other settings.
    """
    out = Path(config.out)
    model = load(config.init, config.device, say=True)
    depth = model.encoder.shape.depth
    if too_many := [b for b in config.blocks if b >= depth]:
        raise RequestError(f"--blocks got {too_many[0]:g}: the model has {depth}, and all of them are run anyway")
    check_reported(config.dataset, config.axes, model.preprocessing.axes)
    named: dict[str, Any] = {name: getattr(config, name) for name in PLACES}
    check_outside(config.dataset, config.out)

    def opened(labels: str | None, held_out: int | None) -> LabelledData:
        return open_labelled(
            config.dataset,
            labels=labels,
            label_file=None,
            held_out=held_out,
            advice="this experiment measures classes, name them otherwise",
            background=model.preprocessing.background,
            max_pixels=FinetuneConfig.max_pixels,
            axes=config.axes,
            usual_axes=model.preprocessing.axes,
            nodata=nodata_of(config.nodata, model.preprocessing),
        )

    data = opened(None, None)
    held_out = config.held_out if data.validation is None else None  # DATA's own val part chooses
    # What would be refused hours later is refused now.
    counts = {labels: len(opened(labels, held_out).train) for labels in config.labels}
    for blocks in config.blocks:
        FinetuneConfig(**named, init=config.init, out=config.out, blocks=blocks)
    # Decided once, of all parts: a share of the labels may hold lower values only.
    depths = look_at_depths(data.parts)
    matched, lines = match_scale(model.preprocessing, depths, config.value_range, stated=stated_range(data.parts))
    axes = axes_of(data.parts)
    for line in [*axes.lines, *value_lines(lines)]:
        print(line, flush=True)
    value_range = config.value_range or (range_for(matched) if matched.source_dtype in depths.counts else None)
    most = max(depths.counts, key=lambda kind: depths.counts[kind], default=None)
    own_range = value_range if value_range and matched.source_dtype == most else model.preprocessing.value_range
    begin(out, config, data.fingerprint, hash_of(model.encoder.state_dict()))
    kept = kept_rows(out / "results.json")
    rows: list[Row] = []

    def row(protocol: str, labels: str, run: Callable[..., Found], *arguments: Any) -> None:
        key = f"{protocol} {labels}"
        if key not in kept:
            print(f"running {key}", flush=True)
            kept[key] = run(labels, *arguments)
        values = kept[key]
        rows.append(Row(protocol, labels, *values))
        print(f"{key}: {rows[-1].words} %", flush=True)
        with disk_faults(out):
            write_json(out / "results.json", kept)
            _write_table(out / "results.csv", rows)
            with written_aside(out / "results.md") as partial:
                partial.write_text(table(rows, config.labels))
        picture(out / "figure-9.png", rows, depth, config.labels)

    def tuned(labels: str, epochs: float, blocks: float | None, init: str) -> Found:
        """Train with every rate, choose by the split of train, measure the chosen on the test part."""
        found = {}
        name = f"{labels}-{'scratch' if init == 'none' else 'full' if blocks is None else f'{blocks:g}-blocks'}"
        for rate in config.base_lr:
            run = out / "runs" / f"{name}-{rate:g}"
            settings = FinetuneConfig(
                **named,
                init=init,
                out=str(run),
                labels=labels,
                held_out=held_out,
                report="held-out",
                blocks=blocks,
                epochs=epochs,
                base_lr=rate,
                batch_size=config.batch_size,
                axes=axes.order,
                nodata=config.nodata,
                evaluate_every=NEVER,
                save_every=NEVER,
                resume="auto",
                device=config.device,
                workers=config.workers,
                **(_shape_of(model, own_range) if init == "none" else {"value_range": value_range}),
            )
            found[rate] = float(_quietly(finetune, settings)["top1"])
            print(f"  {name} {rate:g}: {found[rate]:.1f} % on the split of train", flush=True)
        best = max(found, key=lambda rate: found[rate])
        classifier = load(str(out / "runs" / f"{name}-{best:g}"), config.device)
        assert isinstance(classifier, ClassifierModel)
        predictions = predict(
            classifier.classifier,
            data.report,
            classifier.preprocessing,
            device=classifier.device,
            precision="fp32",
            batch_size=256,
            workers=default_workers(classifier.device),
            processes=Processes(),
        )
        return [figures(predictions)["top1"]], best, found[best]

    def probed(labels: str) -> Found:
        found = []
        for seed in range(config.seeds):
            settings = ProbeConfig(
                **named,
                init=config.init,
                out=str(out / "runs" / f"{labels}-probe-{seed}"),
                labels=labels,
                held_out=held_out,
                value_range=value_range,
                axes=axes.order,
                nodata=config.nodata,
                seed=seed,
                evaluate_every=NEVER,
                resume="auto",
                device=config.device,
                workers=config.workers,
            )
            found.append(_quietly(probe, settings))
        return [float(s["top1"]) for s in found], None, statistics.fmean(float(s["choice_top1"]) for s in found)

    def neighbours(labels: str) -> Found:
        run = out / "runs" / f"{labels}-knn"
        shutil.rmtree(run, ignore_errors=True)  # left by a stop: it is quick, and never goes on
        settings = KnnConfig(
            **named,
            init=config.init,
            out=str(run),
            k=(min(NEIGHBOURS, counts[labels]),),
            labels=labels,
            held_out=held_out,
            value_range=value_range,
            axes=axes.order,
            nodata=config.nodata,
            device=config.device,
            workers=config.workers,
        )
        return [float(_quietly(knn, settings)["top1"])], None, None

    for labels in config.labels:
        row("kNN", labels, neighbours)
        row("probe", labels, probed)
    for labels, epochs in zip(config.labels, config.epochs, strict=True):
        row("full", labels, tuned, epochs, None, config.init)
        row("scratch", labels, tuned, epochs, None, "none")
        for blocks in config.blocks:
            row(f"{blocks:g} blocks", labels, tuned, epochs, blocks, config.init)
    return kept


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


def _write_table(path: Path, rows: list[Row]) -> None:
    with written_aside(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["protocol", "labels", "top1", "seeds", "base_lr", "top1_on_the_split_that_chose"])
        writer.writerows([r.protocol, r.labels, f"{r.mean:.4f}", len(r.top1), r.base_lr, r.chosen_by] for r in rows)


def table(rows: list[Row], labels: tuple[str, ...]) -> str:
    """Protocols down, shares of the labels across, in Markdown."""
    lines = ["| | " + " | ".join(labels) + " |", "|---|" + "---|" * len(labels)]
    protocols = list(dict.fromkeys(r.protocol for r in rows))
    order = {"kNN": -2.0, "probe": -1.0, "full": 1e6, "scratch": 1e7}
    for protocol in sorted(protocols, key=lambda p: order.get(p) or float(p.split()[0])):
        cells = [next((r.words for r in rows if (r.protocol, r.labels) == (protocol, share)), "") for share in labels]
        lines.append(f"| {protocol} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(path: Path, rows: list[Row], depth: int, labels: tuple[str, ...]) -> None:
    """Top-1 over the number of trained blocks, a line a share of the labels; from scratch and kNN as levels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = ("#c2452d", "#2d6cc2", "#3c8f4e", "#8e5aa8", "#b8860b")
    for number, share in enumerate(labels):
        colour = colours[number % len(colours)]
        own = {r.protocol: r for r in rows if r.labels == share}
        places = {"probe": 0.0, "full": float(depth)}
        places |= {name: float(name.split()[0]) for name in own if name.endswith(" blocks")}
        points = sorted((place, own[name]) for name, place in places.items() if name in own)
        if points:
            spread = [statistics.stdev(r.top1) if len(r.top1) > 1 else 0 for _, r in points]
            axes.errorbar(
                [x for x, _ in points],
                [r.mean for _, r in points],
                yerr=spread,
                fmt="o-",
                ms=4,
                color=colour,
                label=f"{share} of the labels",
            )
        for name, style in (("scratch", "--"), ("kNN", ":")):
            if name in own:
                axes.axhline(own[name].mean, ls=style, lw=1, color=colour)
    axes.plot([], [], ls="--", lw=1, color="#666666", label="from scratch")
    axes.plot([], [], ls=":", lw=1, color="#666666", label="kNN")
    axes.set(
        xlabel=f"blocks fine-tuned: 0 is the linear probe, {depth} is all",
        ylabel="top-1 on the test part, %",
        title="Partial fine-tuning (figure 9)",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    with disk_faults(path), written_aside(path) as partial:
        figure.savefig(partial)
