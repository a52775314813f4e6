"""Package metadata and extras; the tools are configured in pyproject.toml."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Return `__version__` of the package without importing it."""
    text = (ROOT / "tfdlrm" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError("tfdlrm/__init__.py must set `__version__`.")
    return match.group(1)


def read_description() -> str:
    """Return the README, the long description of the package."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


class BuildWithRecipes(build_py):
    """Copies `pipelines/*.toml` into the wheel as `tfdlrm/recipes`: commands find them there without a checkout."""

    def run(self) -> None:
        """Build as ever, then copy; an editable install reads the checkout's own."""
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / "tfdlrm" / "recipes"
        folder.mkdir(parents=True, exist_ok=True)
        for recipe in sorted((ROOT / "pipelines").glob("*.toml")):
            shutil.copyfile(recipe, folder / recipe.name)


# TensorFlow and tf_keras move together, and results are checked against one pair of them.
CORE = [
    "fastapi>=0.115,<1",  # the server, over REST
    "httpx>=0.27,<1",  # the verify stage asks a server
    "matplotlib>=3.8,<4",
    "ml-dtypes>=0.5.1,<1",  # bfloat16 for NumPy
    "numpy>=1.26,<3",
    "polars>=2.1,<3",
    "pydantic>=2.8,<3",
    "rich>=13.7,<16",
    "scikit-learn>=1.4,<2",
    "scipy>=1.11,<2",
    "shtab>=1.7,<2",  # shell completion
    "tensorboard>=2.20,<3",  # tf.summary is empty without it
    "tensorflow~=2.21.0",
    "tensorflow-datasets>=4.9.10,<5",
    "tensorflow-recommenders>=0.7.7,<0.8",
    "tf_keras~=2.21.0",
    "tomli-w>=1.0,<2",
    "uvicorn>=0.30,<1",
]

EXTRAS = {
    # gRPC, warm-up requests and metrics; REST alone needs none of it
    "serving": ["grpcio>=1.70,<2", "prometheus-client>=0.21,<1", "tensorflow-serving-api~=2.21.0"],
    "tune": [
        "keras-tuner>=1.4.8,<2",
        "tensorboard>=2.20,<3",  # keras-tuner imports it without asking for it
        "threadpoolctl>=3.1,<4",
    ],
    "beam": ["apache-beam>=2.77,<3"],
    "gpu": ["tensorflow[and-cuda]~=2.21.0"],
    "onnx": ["onnx>=1.17,<2", "onnxruntime>=1.20,<2", "tf2onnx>=1.17,<2"],
    "mlperf": ["mlperf-logging>=4.1,<5"],  # report.mlperf
    "docs": ["mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26,<2"],
    "dev": [
        "dill>=0.3.8,<1",  # tfds.testing imports it without asking for it
        "hypothesis>=6.100,<7",
        "ipykernel>=6,<8",  # runs the notebooks
        "jsonschema>=4.23,<5",
        "kubernetes-validate>=1.31,<2",  # Kubernetes' schemas, for the manifests
        "mlperf-logging>=4.1,<5",
        "mypy>=1.13,<3",
        "nbclient>=0.10,<1",
        "pandas>=2.2,<4",  # a client takes its frames
        "playwright>=1.49,<2",  # drives a Chromium that is installed: reports are looked at in a browser
        "pre-commit>=4,<5",
        "pyarrow>=15",  # a table of theirs is a data frame, too
        "pytest>=8,<10",
        "pytest-timeout>=2.3,<3",
        "pytest-xdist>=3.6,<4",
        "pyyaml>=6,<7",
        "ruff>=0.9,<1",
        "schemathesis>=4,<5",
        "setuptools>=77",  # builds the editable install without a download
    ],
}

setup(
    name="tfdlrm",
    version=read_version(),
    description="DLRM in Keras and TensorFlow: raw click logs in, a served model out.",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["tfdlrm", "tfdlrm.*"]),
    package_data={"tfdlrm": ["py.typed"]},
    cmdclass={"build_py": BuildWithRecipes},
    entry_points={"console_scripts": ["tfdlrm = tfdlrm.pipelines.script:main"]},
    python_requires=">=3.11,<3.14",
    install_requires=CORE,
    extras_require=EXTRAS,
    keywords=["recommender systems", "click-through rate", "DLRM", "TensorFlow", "Keras", "embeddings"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    zip_safe=False,
)
