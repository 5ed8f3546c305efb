"""How figures and baselines are named where people read them, by their keys in metrics.json."""

from collections.abc import Mapping
from typing import Any

LABEL_FIGURES = {"F1": "f1", "AUROC": "auroc", "AP": "average_precision"}
DECISION_FIGURES = {
    "sensitivity": "recall",
    "specificity": "specificity",
    "PPV": "precision",
    "NPV": "npv",
}
EVIDENCE_FIGURES = {
    "IOU F1": "evidence_iou_f1",
    "precision": "evidence_iou_precision",
    "recall": "evidence_iou_recall",
    "token F1": "answerable/evidence_token_f1",
    "exact": "answerable/evidence_exact_match",
    "detection F1": "evidence_detection_f1",
    "AP": "evidence_detection_average_precision",
}
CALIBRATION_FIGURES = {
    "Brier": "brier",
    "skill": "brier_skill",
    "ECE": "ece",
    "ECE if exact": "ece_if_calibrated",
    "slope": "calibration_slope",
    "intercept": "calibration_intercept",
}
MULTILABEL_FIGURES = {
    "micro-F1": "f1_micro",
    "macro-F1": "f1_macro",
    "weighted-F1": "f1_weighted",
    "samples-F1": "f1_samples",
    "subset accuracy": "subset_accuracy",
}
RANKING_FIGURES = {
    "AP": "ap",
    "R-precision": "r_precision",
    "P@10": "p_at_10",
    "NDCG@1000": "ndcg_at_1000",
}
# Those of each kind of protocol, of all labels and of one.
PROTOCOL_FIGURES: Mapping[str, Mapping[str, str]] = {
    "multilabel": MULTILABEL_FIGURES,
    "ranking": RANKING_FIGURES,
}
PROTOCOL_LABEL_FIGURES: Mapping[str, Mapping[str, str]] = {
    "multilabel": {"precision": "precision", "recall": "recall", "F1": "f1", "support": "support"},
    "ranking": {**RANKING_FIGURES, "relevant": "support"},
}
LABEL_BASELINES = {
    "tfidf_lr": "TF-IDF + LR",
    "majority": "majority",
    "always_met": "always met",
}
EVIDENCE_BASELINES = {
    "tfidf_lr": "TF-IDF + LR sentences",
    "tfidf_sentence": "TF-IDF sentence",
    "first_sentence": "first sentence",
    "whole_post": "whole post",
    "none": "no evidence",
}
# Beside the systems, where `data.merge` merges the labels of annotators; by the prefix of their keys.
MERGED_BY = "labels_merged_by"  # key of the rule, among the figures of a split
AGAINST_OTHERS = {
    "annotators/": "annotators, each against {others}",
    "annotators/model/": "model, against the same labels",
}
# The figures that systems are compared by, each with the baselines that have it.
HEADLINES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "f1_macro": ("macro-F1", LABEL_BASELINES),
    "evidence_iou_f1": ("IOU F1", EVIDENCE_BASELINES),
}


def those_against(rule: Any) -> str:
    """Return whose labels each annotator is held against: those of the others, or of `annotator:ID`.

    Args:
        rule: of `data.merge`.
    """
    _, _, named = str(rule).partition("annotator:")
    return named or "the others"


def protocol_prefix(name: str) -> str:
    """Return what the keys of the figures of a protocol begin with."""
    return f"protocol/{name}/"
