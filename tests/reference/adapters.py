"""Methods on frozen features, slowly: plain loops over lists of floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.reference.plain import Matrix, Vector, cross_entropy, dot, entropy, length, mean, softmax


def zero_shot(image: Matrix, classes: Matrix, scale: float, bias: float) -> Matrix:
    return [[scale * dot(f, w) + bias for w in classes] for f in image]


def rescaled(moved: Vector, like: Vector) -> Vector:
    return [value * length(like) / length(moved) for value in moved]


def relu(values: Vector) -> Vector:
    return [max(0.0, value) for value in values]


def clip_adapter(image: Matrix, down: Matrix, up: Matrix, ratio: float) -> Matrix:
    out = []
    for f in image:
        hidden = relu([dot(row, f) for row in down])
        new = relu([dot(row, hidden) for row in up])
        out.append(rescaled([ratio * new[d] + (1 - ratio) * f[d] for d in range(len(f))], f))
    return out


def task_res(classes: Matrix, residual: Matrix, scale: float) -> Matrix:
    out = []
    for t, x in zip(classes, residual, strict=True):
        out.append(rescaled([t[d] + scale * x[d] for d in range(len(t))], t))
    return out


def tip_adapter(
    image: Matrix,
    classes: Matrix,
    keys: Matrix,
    labels: Sequence[int],
    *,
    scale: float,
    bias: float,
    alpha: float,
    beta: float,
) -> Matrix:
    out = zero_shot(image, classes, scale, bias)
    for i, f in enumerate(image):
        for key, label in zip(keys, labels, strict=True):
            out[i][label] += alpha * math.exp(-beta * (1 - dot(f, key)))
    return out


def loss(logits: Matrix, labels: Sequence[int]) -> float:
    """Mean cross-entropy of labels."""
    rows = []
    for z, label in zip(logits, labels, strict=True):
        rows.append(cross_entropy(z, [float(c == label) for c in range(len(z))]))
    return mean(rows)


def probe_objective(
    features: Matrix, labels: Sequence[int], weight: Matrix, bias: Vector, c: float, before: Matrix | None
) -> float:
    """scikit-learn's: half the squared weights, and c times the summed loss."""
    total = 0.0
    for row in weight:
        total += 0.5 * dot(row, row)
    for i, f in enumerate(features):
        z = [dot(weight[k], f) + bias[k] + (0.0 if before is None else before[i][k]) for k in range(len(weight))]
        total += c * cross_entropy(z, [float(k == labels[i]) for k in range(len(z))])
    return total


def confident_views(logits: Matrix, share: float) -> list[int]:
    """Take the surest view that is left, as often as the share says."""
    left = list(range(len(logits)))
    kept = []
    while len(kept) < max(1, math.floor(share * len(logits) + 1e-9)):
        best = left[0]
        for view in left:
            if entropy(softmax(logits[view])) < entropy(softmax(logits[best])):
                best = view
        left.remove(best)
        kept.append(best)
    return kept


def entropy_of_mean(logits: Matrix) -> float:
    rows = [softmax(z) for z in logits]
    return entropy([mean([row[c] for row in rows]) for c in range(len(rows[0]))])


def pseudo_labels(probabilities: Matrix, per_class: int | None, at_least: float) -> list[tuple[int, int]]:
    """(image, class) of the surest images of each class among those predicted as it."""
    out = []
    for label in range(len(probabilities[0])):
        own = [i for i, p in enumerate(probabilities) if p.index(max(p)) == label and p[label] >= at_least]
        own.sort(key=lambda i: -probabilities[i][label])
        out += [(i, label) for i in own[:per_class]]
    return out


def ensemble(teachers: Sequence[Matrix], temperature: float) -> Matrix:
    out = []
    for i in range(len(teachers[0])):
        rows = [softmax([value / temperature for value in z[i]]) for z in teachers]
        out.append([mean([row[c] for row in rows]) for c in range(len(rows[0]))])
    return out
