"""The rows of an experiment: finished ones are kept, all are written after each."""

import json

from openmae.experiments.ledger import Ledger


def test_finished_rows_are_not_run_again_and_all_are_written(tmp_path):
    asked, drawn = [], []

    def find(labels, *arguments):
        asked.append((labels, *arguments))
        return [50.0, 60.0], 0.1, 70.0

    kept = {"kNN 1%": [[40.0], None, None]}
    ledger = Ledger(tmp_path, ("1%", "10%"), ["probe", "kNN"].index, drawn.append, kept)
    ledger.run("kNN", "1%", find)
    assert not asked
    ledger.run("probe", "10%", find, "more")
    assert asked == [("10%", "more")]
    assert json.loads((tmp_path / "results.json").read_text()) == {
        "kNN 1%": [[40.0], None, None],
        "probe 10%": [[50.0, 60.0], 0.1, 70.0],
    }
    assert (tmp_path / "results.md").read_text().splitlines() == [
        "| | 1% | 10% |",
        "|---|---|---|",
        "| probe |  | 55.0 ± 7.1 |",
        "| kNN | 40.0 |  |",
    ]
    assert (tmp_path / "results.csv").read_text().splitlines()[1:] == [
        "kNN,1%,40.0000,1,,",
        "probe,10%,55.0000,2,0.1,70.0",
    ]
    assert [len(rows) for rows in drawn] == [2, 2]  # the same list, which grew
