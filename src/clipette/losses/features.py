"""Feature losses: the student's vector must be the teacher's vector of the same input.

Each is a mean over the batch of a number that does not change with the width D, so a weight keeps its meaning.
Both normalise their inputs in float32, so they may be given raw outputs. For both towers, call once for each.
"""

from __future__ import annotations

from torch import Tensor

from clipette.errors import ModelError
from clipette.losses.numerics import check_rows, unit


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine between the student's and the teacher's vectors.

    mean_i [1 − cos(s_i, t_i)]

    Shapes: student, teacher [B, D], of any length. No scale, no temperature. The teacher receives no gradient.
    Range: 0 (same direction) to 2 (opposite).

    Raises:
        ModelError: widths differ.
        InternalError: counts differ.

    Paper: the feature term of most of the methods here, up to a factor: see ``mse``.
    Deviation: none.
    """
    _check(student, teacher)
    return (1 - (unit(student) * unit(teacher.detach())).sum(dim=-1)).mean()


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between the student's and the teacher's unit vectors.

    mean_i ‖s_i − t_i‖² = 2 · mean_i [1 − cos(s_i, t_i)], summed over D

    Shapes: student, teacher [B, D], of any length (normalised here). No scale, no temperature. The teacher receives
    no gradient.
    Range: 0 to 4.

    Raises:
        ModelError: widths differ.
        InternalError: counts differ.

    Paper: Li et al. (OOD distillation), ICCV 2023, L_mse; FD of Yang et al. (CLIP-KD), CVPR 2024, L_FD.
    Deviation: none from OOD. CLIP-KD averages over the D elements too: its weight 2000 at D = 512 is 3.9 here.
    """
    _check(student, teacher)
    return (unit(student) - unit(teacher.detach())).square().sum(dim=-1).mean()


def _check(student: Tensor, teacher: Tensor) -> None:
    check_rows(student=student, teacher=teacher)
    if student.shape[1] != teacher.shape[1]:
        raise ModelError(
            f"the student's vectors are {student.shape[1]} wide and the teacher's {teacher.shape[1]}: "
            "a feature loss needs an adapter or projector to the teacher's width"
        )
