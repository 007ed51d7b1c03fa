"""What the loop of a run notes of its epochs."""

from datafree.runs.loop import Progress


def rows(scores, kd_losses, evaluated=None, name="test_top1"):
    """Lines of metrics."""
    evaluated = evaluated or [True] * len(scores)
    columns = zip(scores, kd_losses, evaluated, strict=True)
    return [
        {"epoch": epoch, name: score, "loss_kd": loss, "evaluated": due}
        for epoch, (score, loss, due) in enumerate(columns)
    ]


def best_epochs(lines):
    progress = Progress(0)
    return [row["epoch"] for row in lines if progress.add(row, 0.0)], progress


def test_the_best_epoch_is_the_first_of_equals_and_was_evaluated():
    found, progress = best_epochs(rows([10, 10, 70, 80, 70], [1.0] * 5, [True, False, True, False, True]))
    assert found == [0, 2]
    assert (progress.best, progress.best_epoch, progress.epoch) == (70, 2, 5)


def test_an_epoch_that_trained_is_better_than_all_of_the_warm_up():
    found, progress = best_epochs(rows([90, 95, 20, 10], [None, None, 1.0, 1.0], name="holdout_agreement"))
    assert found == [0, 2]
    assert progress.best == 20


def test_accuracy_decides_where_there_are_test_images():
    lines = [{**row, "holdout_agreement": 100 - row["test_top1"]} for row in rows([10, 20], [1.0, 1.0])]
    assert best_epochs(lines)[0] == [0, 1]
