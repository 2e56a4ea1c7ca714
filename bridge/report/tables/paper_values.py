"""The paper's Table I as numbers, to stand beside ours."""

TABLE_ONE: dict[tuple[str, str], tuple[float, float]] = {
    ("resnet18", "cifar10"): (0.14, 3.4),
    ("resnet18", "cifar100"): (1.34, 13.75),
    ("resnet18", "tiny_imagenet"): (26.45, 56.62),
    ("resnet18", "imagenet"): (73.69, 94.93),
    ("resnet50", "cifar10"): (2.67, 29.74),
    ("resnet50", "cifar100"): (8.54, 44.4),
    ("resnet50", "tiny_imagenet"): (41.48, 69.45),
    ("resnet50", "imagenet"): (97.76, 99.3),
}
"""Table I of Sharma et al.: by architecture and data set, the analog-only failure rate in D1 and in
D10, in percent, of the profile adc+wnoise+pcm; the split and the denominator are not said."""
