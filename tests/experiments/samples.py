"""Made-up results of an experiment, for what is written and drawn of them."""

from openmae.experiments.studies.study import DEFAULT, Measured, Row, RowResult, Section, Study

DEFAULT_ROW = Row(name=DEFAULT, label="large, default", paper={"finetune": 84.9, "linear": 73.5})
SMALL = Row(name="small", label="small (paper: smaller)", paper={"finetune": 84.9, "linear": 65.5})
ODD = Row(name="odd", label="odd", paper={"finetune": 84.0, "linear": 73.9}, paper_cost={"FLOPs": 3.3, "time": 2.8})
TABLE = Study(
    name="table-9",
    title="Table 9: sizes",
    sections=(Section("a: size", (SMALL, DEFAULT_ROW)), Section("b: form", (DEFAULT_ROW, ODD))),
    protocols=("finetune", "linear", "knn"),
    remarks=("A remark.",),
)


def point(curve, name, position, paper):
    label = f"{curve}, {name} wide (paper: {position:g} large)"
    return Row(name=f"{curve} {name}", label=label, paper={"finetune": paper}, position=position, curve=curve)


FIGURE = Study(
    name="figure-0",
    title="Figure 0: curves",
    sections=(Section("size", tuple(point(c, n, x, p) for c, n, x, p in (
        ("MAE", "8", 10.0, 83.0), ("plain", "8", 10.0, 82.0), ("MAE", "16", 100.0, 86.0), ("plain", "16", 100.0, 83.0)
    ))),),
    protocols=("finetune",),
    axis="size",
    is_log_axis=True,
    baseline="MAE 8",
)  # fmt: skip


def result(row, seconds=None, flops=1.0, failed="", **values):
    """A row's result; `values` of seeds by protocol, a number for one seed."""
    protocols = {
        name: Measured(tuple(of) if isinstance(of, tuple) else (of,), row.paper.get(name))
        for name, of in values.items()
    }
    cost = {"gflop_an_image": 0.5, "flops_to_default": flops, **({"seconds": [seconds]} if seconds else {})}
    return RowResult(row, {"steps": 8}, protocols, cost, failed)


def table_results():
    """Three seeds of the default row, one of the others: a spread of 1 point in fine-tuning, of 0.5 in the probe."""
    return [
        result(DEFAULT_ROW, 100.0, finetune=(69.0, 70.0, 71.0), linear=(49.5, 50.0, 50.5), knn=(40.0, 40.0, 40.0)),
        result(SMALL, 50.0, 0.5, finetune=60.0, linear=49.0, knn=39.0),
        result(ODD, 300.0, 3.25, finetune=69.0, linear=56.0, knn=47.0),
    ]


def figure_results():
    by_name = {row.name: row for row in FIGURE.rows}
    return [
        result(by_name["MAE 8"], finetune=(69.5, 70.5)),
        result(by_name["plain 8"], finetune=60.0),
        result(by_name["MAE 16"], finetune=73.0),
        result(by_name["plain 16"], finetune=74.0),
    ]
