"""Twins of clipette.losses.relations."""

from __future__ import annotations

from reference.plain import Matrix, cos, cross_entropy, huber, kl, length, logits, mean, minus, softmax, transpose


def rkd_distance(student: Matrix, teacher: Matrix) -> float:
    pairs = [(i, j) for i in range(len(student)) for j in range(len(student)) if i != j]
    if not pairs:
        return 0.0

    def relative(vectors: Matrix) -> list[float]:
        distances = [length(minus(vectors[i], vectors[j])) for i, j in pairs]
        positive = [d for d in distances if d > 0]
        return [d / mean(positive) for d in distances] if positive else distances

    s, t = relative(student), relative(teacher)
    return mean([huber(s[n] - t[n]) for n in range(len(pairs))])


def rkd_angle(student: Matrix, teacher: Matrix, anchors: int | None = None) -> float:
    def angle(vectors: Matrix, i: int, j: int, k: int) -> float:
        to_i, to_k = minus(vectors[i], vectors[j]), minus(vectors[k], vectors[j])
        return cos(to_i, to_k) if length(to_i) > 0 and length(to_k) > 0 else 0.0

    count = len(student)
    terms = []
    for j in range(min(count, anchors or count)):
        for i in range(count):
            for k in range(count):
                if i != j and k != j:
                    terms.append(huber(angle(student, i, j, k) - angle(teacher, i, j, k)))
    return mean(terms) if terms else 0.0


def gram(student: Matrix, teacher: Matrix) -> float:
    terms = []
    for i in range(len(student)):
        for j in range(len(student)):
            if i != j:
                terms.append((cos(student[i], student[j]) - cos(teacher[i], teacher[j])) ** 2)
    return mean(terms) if terms else 0.0


def intra_modal_kl(student: Matrix, teacher: Matrix, student_scale: float, teacher_scale: float) -> float:
    if len(student) == 1:
        return 0.0
    terms = []
    for i in range(len(student)):
        others = [j for j in range(len(student)) if j != i]
        p = softmax([teacher_scale * cos(teacher[i], teacher[j]) for j in others])
        q = softmax([student_scale * cos(student[i], student[j]) for j in others])
        terms.append(kl(p, q))
    return mean(terms)


def clip_rd(
    student_image: Matrix,
    student_text: Matrix,
    teacher_image: Matrix,
    teacher_text: Matrix,
    scale: float,
    held_image: Matrix,
    held_text: Matrix,
    held_scale: float,
    vertical: float = 1.0,
    cross: float = 1.0,
) -> float:
    def divergence(target: Matrix, student: Matrix) -> float:
        terms = []
        for p, q in ((target, student), (transpose(target), transpose(student))):
            for i in range(len(p)):
                terms.append(kl(softmax(p[i]), softmax(q[i])))
        return mean(terms)

    def contrast(student: Matrix) -> float:
        terms = []
        for q in (student, transpose(student)):
            for i in range(len(q)):
                terms.append(cross_entropy(q[i], [1.0 if c == i else 0.0 for c in range(len(q))]))
        return mean(terms)

    of_images, of_texts = logits(student_image, teacher_image, scale), logits(student_text, teacher_text, scale)
    x, y = logits(student_image, teacher_text, scale), logits(student_text, teacher_image, scale)
    held_x = logits(held_image, teacher_text, held_scale)
    held_y = logits(held_text, teacher_image, held_scale)
    held_texts = logits(held_text, teacher_text, held_scale)
    along = divergence(held_texts, of_images) + contrast(of_images) + contrast(of_texts)
    return vertical * along + cross * (divergence(held_x, y) + divergence(held_y, x)) / 2
