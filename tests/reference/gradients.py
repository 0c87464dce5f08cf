"""Twin of clipette.losses.gradients."""

from __future__ import annotations

from reference.plain import Matrix, logits, mean, softmax


def pulls(anchor: Matrix, candidate: Matrix, scale: float) -> tuple[Matrix, Matrix]:
    """Gradients of Σ_i CE(scale · a_i · Cᵀ, i) / scale by each anchor and each candidate."""
    count, width = len(anchor), len(anchor[0])
    z = logits(anchor, candidate, scale)
    by_anchor = [[0.0] * width for _ in range(count)]
    by_candidate = [[0.0] * width for _ in range(count)]
    for i in range(count):
        p = softmax(z[i])
        for j in range(count):
            excess = p[j] - (1.0 if i == j else 0.0)
            for k in range(width):
                by_anchor[i][k] += excess * candidate[j][k]
                by_candidate[j][k] += excess * anchor[i][k]
    return by_anchor, by_candidate


def gradient_distillation(
    student_image: Matrix,
    student_text: Matrix,
    teacher_image: Matrix,
    teacher_text: Matrix,
    student_scale: float,
    teacher_scale: float,
) -> float:
    of_student = [
        *pulls(student_image, student_text, student_scale),
        *pulls(student_text, student_image, student_scale),
    ]
    of_teacher = [
        *pulls(teacher_image, teacher_text, teacher_scale),
        *pulls(teacher_text, teacher_image, teacher_scale),
    ]
    total = 0.0
    for s, t in zip(of_student, of_teacher, strict=True):
        total += mean([sum((s[i][k] - t[i][k]) ** 2 for k in range(len(s[i]))) for i in range(len(s))])
    return total
