"""What the judgments of several labelers say: agreement, worths of answers, labelers who differ, biases.

Computes numbers from rankings with numpy. Does not know prompts, files, models or services;
`fairlead.data.judged` reads judgments from files of rankings.
"""

from __future__ import annotations

from fairlead.judgments.agreement import Agreement, TwoLabelers, agreement, by_two_labelers
from fairlead.judgments.alpha import krippendorff_alpha
from fairlead.judgments.bias import LengthBias, PositionBias, length_bias, position_bias
from fairlead.judgments.judgment import Judgment
from fairlead.judgments.kappa import cohen_kappa, fleiss_kappa
from fairlead.judgments.labelers import LabelerFigures, leave_one_out
from fairlead.judgments.worths import bradley_terry, plackett_luce

__all__ = [
    "Agreement",
    "Judgment",
    "LabelerFigures",
    "LengthBias",
    "PositionBias",
    "TwoLabelers",
    "agreement",
    "bradley_terry",
    "by_two_labelers",
    "cohen_kappa",
    "fleiss_kappa",
    "krippendorff_alpha",
    "leave_one_out",
    "length_bias",
    "plackett_luce",
    "position_bias",
]
