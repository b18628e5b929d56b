"""A trial's own parts; whole trials run in test_experiments.py and test_figure_9.py."""

from openmae.experiments.trials.trial import OWN_MODEL, Place, Stage, Trial, _init


def test_a_given_model_may_be_called_as_the_own_one(tmp_path):
    """`figure-9 --init pretrain`: a folder of the person's, for such a trial pre-trains nothing."""
    place, stage = Place(folder=tmp_path), Stage(kind="knn", settings={"init": OWN_MODEL})
    measured = Trial(row="kNN, 10%", seed=0, stages=(stage,))
    trained = Trial(row="default", seed=0, stages=(Stage(kind="pretrain", settings={}), stage))
    assert _init(stage, measured, place, "knn") == OWN_MODEL
    assert _init(stage, trained, place, "knn") == str(tmp_path / "pretrain")
