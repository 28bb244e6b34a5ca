"""Equations of SimCLR, MoCo, BYOL and DINO and of contrast between points, written out number by number.

Vectors are lists of floats. Nothing is fast, and nothing is shared with the code that is tested.
"""

import math

Vector = list[float]


def cosine(one: Vector, other: Vector) -> float:
    """Cosine of two vectors of any length."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = math.sqrt(sum(a * a for a in one)) * math.sqrt(sum(b * b for b in other))
    return product / lengths


def cross_entropy(right: float, others: list[float]) -> float:
    """Of one right score among others."""
    return math.log(sum(math.exp(score) for score in [right, *others])) - right


def view_contrast(first: list[Vector], second: list[Vector], *, temperature: float, patients: list[int]) -> float:
    """NT-Xent over both views of all images; other images of an anchor's patient are left out."""
    views = [*first, *second]
    images = len(first)
    losses = []
    for anchor, vector in enumerate(views):
        partner = (anchor + images) % (2 * images)
        others = [
            cosine(vector, views[other]) / temperature
            for other in range(2 * images)
            if other not in (anchor, partner) and patients[other % images] != patients[anchor % images]
        ]
        losses.append(cross_entropy(cosine(vector, views[partner]) / temperature, others))
    return sum(losses) / len(losses)


def queue_contrast(queries: list[Vector], keys: list[Vector], queue: list[Vector], *, temperature: float) -> float:
    """MoCo v1 and v2: the key of the image among those of a queue."""
    losses = [
        cross_entropy(cosine(query, key) / temperature, [cosine(query, old) / temperature for old in queue])
        for query, key in zip(queries, keys, strict=True)
    ]
    return sum(losses) / len(losses)


def batch_contrast(queries: list[Vector], keys: list[Vector], *, temperature: float, patients: list[int]) -> float:
    """MoCo v3, one direction: the key of the image among those of the batch."""
    losses = []
    for number, query in enumerate(queries):
        others = [
            cosine(query, key) / temperature for place, key in enumerate(keys) if patients[place] != patients[number]
        ]
        losses.append(cross_entropy(cosine(query, keys[number]) / temperature, others))
    return 2 * temperature * sum(losses) / len(losses)


def prediction_loss(predicted: tuple[list[Vector], list[Vector]], targets: tuple[list[Vector], list[Vector]]) -> float:
    """BYOL: squared distances of unit vectors, of each view's prediction to the other view's target."""
    total = 0.0
    for own, other in zip(predicted, (targets[1], targets[0]), strict=True):
        for one, two in zip(own, other, strict=True):
            length, width = (math.sqrt(sum(x * x for x in vector)) for vector in (one, two))
            total += sum((a / length - b / width) ** 2 for a, b in zip(one, two, strict=True))
    return total / len(predicted[0])


def softmax(scores: Vector, temperature: float) -> Vector:
    """Shares of scores."""
    powers = [math.exp(score / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


def self_distillation(
    students: list[list[Vector]],
    teachers: list[list[Vector]],
    centre: Vector,
    *,
    temperature: float,
    teacher_temperature: float,
) -> float:
    """DINO: cross entropy of the student's shares of each view with the teacher's of each other large view."""
    losses = []
    for source, teacher in enumerate(teachers):
        for place, student in enumerate(students):
            if source == place:
                continue
            for given, told in zip(teacher, student, strict=True):
                target = softmax([x - c for x, c in zip(given, centre, strict=True)], teacher_temperature)
                shares = softmax(told, temperature)
                losses.append(-sum(t * math.log(s) for t, s in zip(target, shares, strict=True)))
    return sum(losses) / len(losses)


def next_centre(centre: Vector, teachers: list[list[Vector]], *, momentum: float) -> Vector:
    """DINO: moving mean of the teacher's outputs over views and images."""
    rows = [row for view in teachers for row in view]
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return [momentum * old + (1 - momentum) * new for old, new in zip(centre, means, strict=True)]
