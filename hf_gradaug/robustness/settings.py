# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Conditions under which robustness is measured."""

from dataclasses import dataclass, field


# Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019
# (arXiv 1903.12261): noise, blur, weather, digital. Their order seeds the draws of each.
CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Condition:
    """
    One measurement of accuracy: on unchanged images, under an attack, or under a corruption.

    Attributes:
        epsilon (`float`, *optional*):
            Largest change of a pixel by the attack, in units of 1/255.
        corruption (`str`, *optional*):
            One of the 15 corruptions of ImageNet-C.
        severity (`int`, *optional*):
            Strength of the corruption, 1 to 5.
    """

    epsilon: float | None = None
    corruption: str | None = None
    severity: int | None = None

    @property
    def key(self) -> str:
        """Name of the condition in the results: `"clean"`, `"fgsm/2.0"` or `"fog/3"`."""
        if self.epsilon is not None:
            return f"fgsm/{float(self.epsilon)}"
        return "clean" if self.corruption is None else f"{self.corruption}/{self.severity}"


@dataclass
class RobustnessSettings:
    """
    The attacks and the corruptions to measure.

    Args:
        epsilons (`list[float]`, *optional*, defaults to `[0, 0.5, 1, 2, 4, 8]`):
            Largest changes of a pixel by FGSM, in units of 1/255. May be empty.
        corruptions (`list[str]`, *optional*, defaults to the 15 of ImageNet-C):
            Names of corruptions. With an empty list or `["none"]`, none is measured.
        severities (`list[int]`, *optional*, defaults to `[1, 2, 3, 4, 5]`):
            Strengths of the corruptions.

    Raises:
        `ValueError`: If a value is out of range, unknown or given twice, or corruptions have no severity.
    """

    epsilons: list[float] = field(
        default_factory=lambda: [0, 0.5, 1, 2, 4, 8],
        metadata={"help": "Largest changes of a pixel by the FGSM attack, in units of 1/255."},
    )
    corruptions: list[str] = field(
        default_factory=lambda: list(CORRUPTIONS),
        metadata={"help": "Corruptions of ImageNet-C, or 'none'. Defaults to all 15."},
    )
    severities: list[int] = field(
        default_factory=lambda: list(SEVERITIES), metadata={"help": "Strengths of the corruptions, 1 to 5."}
    )

    def __post_init__(self):
        if self.corruptions == ["none"]:
            self.corruptions = []
        for epsilon in self.epsilons:
            if not 0 <= epsilon <= 255:
                raise ValueError(f"`epsilons` must each be in [0, 255], in units of 1/255, but one is {epsilon}.")
        for corruption in self.corruptions:
            if corruption not in CORRUPTIONS:
                raise ValueError(
                    f"`corruptions` must each be one of {', '.join(CORRUPTIONS)}, but one is '{corruption}'."
                )
        for severity in self.severities:
            if severity not in SEVERITIES:
                raise ValueError(f"`severities` must each be one of {list(SEVERITIES)}, but one is {severity}.")
        for name in ("epsilons", "corruptions", "severities"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"`{name}` must each be given once, but are {values}.")
        if self.corruptions and not self.severities:
            raise ValueError(
                f"`severities` must have one or more for the corruptions {self.corruptions}, but is empty."
            )

    @property
    def conditions(self) -> list[Condition]:
        """The unchanged images first, then each epsilon, then each corruption at each severity."""
        return [
            Condition(),
            *(Condition(epsilon=epsilon) for epsilon in self.epsilons),
            *(Condition(corruption=name, severity=level) for name in self.corruptions for level in self.severities),
        ]
