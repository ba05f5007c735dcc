"""Whether a compressed model is as good as the original, on images that chose nothing."""

from medimg.runtime.statistics.bootstrap import Resamples
from medimg.runtime.statistics.metrics import judge_drop, paired_drop_ci95
from medimg.runtime.statistics.verdict import Verdict
from medimg.train.compression.result import Gate
from medimg.train.evaluation.answers import Answers
from medimg.train.evaluation.scores import area_difference, score

WORST_FIRST: tuple[Verdict, ...] = ("failed", "not proven", "proven")


def judge(reference: Answers, found: Answers, max_drop: float) -> Gate:
    """Compare an INT8 artefact with the original, image by image.

    The accuracy is judged as export judges it; the area under the ROC curve by the bootstrap, both models on
    the same draws, against the same bound. The worse verdict counts.

    Args:
        reference: the original's answers, in float32.
        found: the artefact's, on the same images.
        max_drop: the largest loss that is accepted.
    """
    resamples = Resamples(reference.patients)
    interval = paired_drop_ci95(reference.right, found.right, reference.patients)
    drop = float(reference.right.mean() - found.right.mean())
    of_area = area_difference(reference, found, resamples)
    verdicts = (
        judge_drop(drop, interval[1], max_drop),
        judge_drop(of_area.value, of_area.high, max_drop),
    )
    before, after = score(reference, resamples), score(found, resamples)
    return Gate(
        images=len(found.right),
        accuracy=after.accuracy,
        accuracy_reference=before.accuracy,
        accuracy_drop=drop,
        accuracy_drop_ci95=interval,
        roc_auc=after.roc_auc,
        roc_auc_reference=before.roc_auc,
        roc_auc_drop=of_area,
        resampling=resamples.resampling,
        backend=found.backend,
        verdict=min(verdicts, key=WORST_FIRST.index),
    )


def passes(verdict: Verdict, *, strict: bool) -> bool:
    """Tell whether a point may be kept."""
    return verdict == "proven" or (verdict == "not proven" and not strict)
