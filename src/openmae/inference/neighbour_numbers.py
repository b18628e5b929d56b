"""Numbers predicted by nearest neighbours, for each k, and the metrics of these predictions."""

import torch

from openmae.config import TargetScale
from openmae.config.features import KnnConfig
from openmae.errors import RequestError, shown
from openmae.inference.features import Features
from openmae.inference.metrics import Predictions, check
from openmae.inference.neighbours import neighbour_means
from openmae.inference.regression import regression_metrics, standardised
from openmae.machine.parallel import Processes


def predict_from_neighbours(
    bank: Features,
    queries: Features,
    scale: TargetScale,
    config: KnnConfig,
    device: torch.device,
    processes: Processes,
) -> dict[int, Predictions]:
    """The predictions of `neighbour_means` for each k; every process computes its share and gets those of all."""
    share = processes.share(len(queries.values))
    own = neighbour_means(
        torch.from_numpy(bank.values),
        standardised(torch.from_numpy(bank.labels), scale),
        torch.from_numpy(queries.values[share.start : share.stop]),
        ks=config.k,
        temperature=config.temperature,
        device=device,
    )
    shares, targets = processes.gather(own), torch.from_numpy(queries.labels)
    return {
        k: Predictions(
            logits=torch.cat([share[k] for share in shares]).float(),
            targets=targets,
            indices=queries.indices,
            bad=queries.bad,
            scale=scale,
        )
        for k in config.k
    }


def check_metric_names(columns: tuple[str, ...], ks: tuple[int, ...]) -> None:
    """Raise RequestError where two metrics would have one name, as with a column called k20 and `--k 5 20`."""
    first_names = {column: f"r2_{column}" for column in columns}
    for k in ks[1:]:
        for name in (f"r2_k{k}", *(f"r2_{column}_k{k}" for column in columns)):
            for column, taken in first_names.items():
                if name == taken:
                    raise RequestError(
                        f"the column {shown(column)} and --k {k} would both have the metric {shown(name)}: rename the "
                        "column, or leave that k out"
                    )


def neighbour_regression_metrics(estimates: dict[int, Predictions]) -> dict[str, float]:
    """`r2`, `mae` and those of each column for the first k; for another `r2_k20` … (see `regression_metrics`)."""
    metrics: dict[str, float] = {}
    for number, (k, predictions) in enumerate(estimates.items()):
        check(predictions)
        own = regression_metrics(predictions.targets.numpy(), predictions.numbers, predictions.columns)
        metrics |= {f"{name}_k{k}" if number else name: value for name, value in own.items()}
    return metrics
