"""Clustering losses written out from their equations, number by number: slow, without log domain or batching."""

import math

Matrix = list[list[float]]


def plain_sinkhorn(scores: Matrix, *, epsilon: float, num_iterations: int) -> Matrix:
    """Scale exp(scores / epsilon), whole to 1, then prototypes to 1/K and images to 1/B in turn, and times B."""
    num_images, num_prototypes = len(scores), len(scores[0])
    mass = [[math.exp(score / epsilon) for score in row] for row in scores]
    total = sum(sum(row) for row in mass)
    mass = [[value / total for value in row] for row in mass]
    for _ in range(num_iterations):
        for k in range(num_prototypes):
            column = sum(mass[i][k] for i in range(num_images))
            for i in range(num_images):
                mass[i][k] = mass[i][k] / column / num_prototypes
        for i in range(num_images):
            row_sum = sum(mass[i])
            mass[i] = [value / row_sum / num_images for value in mass[i]]
    return [[value * num_images for value in row] for row in mass]


def log_probability(row: list[float], k: int, *, temperature: float) -> float:
    return row[k] / temperature - math.log(sum(math.exp(score / temperature) for score in row))


def swapped_prediction(
    views: list[Matrix], *, num_global: int, temperature: float, epsilon: float, num_iterations: int
) -> float:
    """1/A sum over a of 1/(V-1) sum over v != a of the mean over images of -sum over k of q log p."""
    total = 0.0
    for a in range(num_global):
        codes = plain_sinkhorn(views[a], epsilon=epsilon, num_iterations=num_iterations)
        of_code = 0.0
        for v, scores in enumerate(views):
            if v == a:
                continue
            for code, row in zip(codes, scores, strict=True):
                for k, share in enumerate(code):
                    of_code -= share * log_probability(row, k, temperature=temperature) / len(scores)
        total += of_code / (len(views) - 1)
    return total / num_global


def cluster_prediction(heads: list[list[Matrix]], labels: list[list[int]], *, temperature: float) -> float:
    """1/H sum over h of the mean over views and labelled images of the cross entropy."""
    total = 0.0
    for views, head_labels in zip(heads, labels, strict=True):
        costs = [
            -log_probability(row, label, temperature=temperature)
            for scores in views
            for row, label in zip(scores, head_labels, strict=True)
            if label != -100
        ]
        total += sum(costs) / len(costs) if costs else 0.0
    return total / len(heads)


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in row))
    return [value / length for value in row]


def nearest(point: list[float], prototypes: Matrix) -> int:
    cosines = [sum(a * b for a, b in zip(point, prototype, strict=True)) for prototype in prototypes]
    return cosines.index(max(cosines))


def spherical_kmeans(points: Matrix, start: Matrix, *, num_rounds: int) -> tuple[Matrix, list[int]]:
    """Assign to the largest cosine, move to the direction of the mean, leave empty clusters."""
    points, prototypes = [unit(point) for point in points], [unit(row) for row in start]
    for _ in range(num_rounds):
        labels = [nearest(point, prototypes) for point in points]
        for k in range(len(prototypes)):
            members = [point for point, label in zip(points, labels, strict=True) if label == k]
            if members:
                prototypes[k] = unit([sum(values) / len(members) for values in zip(*members, strict=True)])
    return prototypes, [nearest(point, prototypes) for point in points]


def larc_step(
    parameter: list[float], gradient: list[float], velocity: list[float], settings: dict[str, float]
) -> tuple[list[float], list[float]]:
    """One step of SGD with momentum on a gradient that was scaled to the parameter's length."""
    length = math.sqrt(sum(value * value for value in parameter))
    slope = math.sqrt(sum(value * value for value in gradient))
    if length != 0 and slope != 0:
        decay = settings["weight_decay"]
        factor = settings["trust"] * length / (slope + decay * length + 1e-8)
        gradient = [factor * (g + decay * p) for g, p in zip(gradient, parameter, strict=True)]
    velocity = [settings["momentum"] * v + g for v, g in zip(velocity, gradient, strict=True)]
    return [p - settings["lr"] * v for p, v in zip(parameter, velocity, strict=True)], velocity
