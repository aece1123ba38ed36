"""Trains a classifier of handwritten digits in seconds and exports it to ONNX.

The graph takes float32 `pixels` [N, 64], 0..16 as in the dataset, and gives float32 `probabilities` [N, 10] and nothing
else. One fifth of the images is held out: the accuracy reported and the sample PNGs come from there. The command fails,
leaving no finished build, if the graph and scikit-learn disagree or the accuracy is below MINIMUM_ACCURACY.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from examples import artifacts

if TYPE_CHECKING:
    import onnx
    from sklearn.pipeline import Pipeline

SEED = 7
MINIMUM_ACCURACY = 0.95
TOLERANCE = 1e-5
# scikit-learn's pixels are 0..16; those of a PNG are 0..255.
PIXEL_SCALE = 16 / 255
LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DISTRIBUTIONS = ("scikit-learn", "skl2onnx", "onnx", "onnxruntime", "numpy", "pillow")
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Split:
    """The dataset in two parts that share no image: pixels [n, 64] of 0..16 and digits [n] of 0..9."""

    train_pixels: np.ndarray
    train_digits: np.ndarray
    test_pixels: np.ndarray
    test_digits: np.ndarray


def load() -> Split:
    """The digits dataset that scikit-learn carries, split the same way every time, each digit in proportion."""
    # Here and below, heavy imports wait until a build needs them: one that is up to date then answers at once.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    train_pixels, test_pixels, train_digits, test_digits = train_test_split(
        data.data.astype(np.float32), data.target, test_size=0.2, stratify=data.target, random_state=SEED
    )
    return Split(train_pixels, train_digits, test_pixels, test_digits)


def train(pixels: np.ndarray, digits: np.ndarray) -> Pipeline:
    """One hidden layer. Its width and alpha did best in cross-validation within the training part alone."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    network = MLPClassifier(hidden_layer_sizes=(128,), alpha=0.1, max_iter=500, random_state=SEED)
    return make_pipeline(MinMaxScaler(), network).fit(pixels, digits)


def export(pipeline: Pipeline) -> onnx.ModelProto:
    """The pipeline as ONNX: `pixels` in, `probabilities` out."""
    import onnx
    from onnx.utils import Extractor
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    model = to_onnx(
        pipeline,
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={"zipmap": False},
    )
    # Takes the label output away with the nodes that only it needs. The platform's top_k processor names the labels.
    model = Extractor(model).extract_model(["pixels"], ["probabilities"])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    used = {node.domain for node in model.graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    model.graph.name = "digits"
    onnx.checker.check_model(model, full_check=True)
    return model


def predict(model: Path, pixels: np.ndarray) -> np.ndarray:
    """Probabilities [n, 10] that the exported model gives for pixels [n, 64]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    probabilities: np.ndarray = session.run(["probabilities"], {"pixels": pixels.astype(np.float32)})[0]
    return probabilities


def check_accuracy(probabilities: np.ndarray, digits: np.ndarray) -> float:
    """The share of right answers; raises CheckFailed below MINIMUM_ACCURACY."""
    accuracy = float(np.mean(probabilities.argmax(axis=1) == digits))
    if accuracy < MINIMUM_ACCURACY:
        raise artifacts.CheckFailed(f"test accuracy is {accuracy:.4f}, below {MINIMUM_ACCURACY}")
    return accuracy


def check_agreement(pipeline: Pipeline, pixels: np.ndarray, probabilities: np.ndarray) -> float:
    """The largest difference from scikit-learn's own probabilities; raises CheckFailed above TOLERANCE."""
    difference = float(np.abs(pipeline.predict_proba(pixels) - probabilities).max())
    if not difference <= TOLERANCE:
        raise artifacts.CheckFailed(f"ONNX and scikit-learn differ by {difference:.2e}, more than {TOLERANCE:.0e}")
    return difference


def write_samples(folder: Path, split: Split, probabilities: np.ndarray) -> list[str]:
    """Writes one held-out image of each digit, and samples.json; returns the names of the files.

    `sample-3-of-7.png` is the third sample and shows a 7. samples.json maps each file to its true label. Each is the
    first that the model reads rightly: samples show a caller what to send and what to expect. How often the model is
    wrong is what test_accuracy says; these do not.
    """
    from PIL import Image

    truth: dict[str, str] = {}
    right = np.flatnonzero(probabilities.argmax(axis=1) == split.test_digits)
    firsts = np.unique(split.test_digits[right], return_index=True)[1]
    for position in right[np.sort(firsts)]:
        digit = int(split.test_digits[position])
        name = f"sample-{len(truth) + 1}-of-{digit}.png"
        grey = np.rint(split.test_pixels[position].reshape(8, 8) / PIXEL_SCALE).astype(np.uint8)
        Image.fromarray(grey).save(folder / name)
        truth[name] = LABELS[digit]
    artifacts.write_json(folder / "samples.json", truth)
    return [*truth, "samples.json"]


def read_samples(folder: Path) -> tuple[np.ndarray, list[str]]:
    """The sample PNGs as the platform's image processor would read them, and their true labels."""
    from PIL import Image

    truth: dict[str, str] = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    images = []
    for name in truth:
        with Image.open(folder / name) as image:
            images.append(np.asarray(image.convert("L"), dtype=np.float32).ravel() * np.float32(PIXEL_SCALE))
    return np.stack(images), list(truth.values())


def check_samples(folder: Path) -> None:
    """Reads every sample from its PNG with the model in the folder; raises CheckFailed if any comes out wrong."""
    pixels, labels = read_samples(folder)
    answers = [LABELS[index] for index in predict(folder / "model.onnx", pixels).argmax(axis=1)]
    if answers != labels:
        raise artifacts.CheckFailed(f"the samples read {', '.join(answers)} instead of {', '.join(labels)}")


def fingerprint() -> str:
    """What the outputs depend on: this code, the manifest template and the libraries, which carry the dataset."""
    return artifacts.fingerprint([Path(__file__), Path(artifacts.__file__), HERE / "model.yaml"], DISTRIBUTIONS)


def build(folder: Path) -> dict[str, float]:
    """Trains, exports, checks and writes everything into the folder; returns the metrics."""
    import onnx

    artifacts.begin(folder)
    split = load()
    pipeline = train(split.train_pixels, split.train_digits)
    onnx.save(export(pipeline), folder / "model.onnx")
    probabilities = predict(folder / "model.onnx", split.test_pixels)
    metrics = {
        "test_accuracy": round(check_accuracy(probabilities, split.test_digits), 4),
        "test_images": float(len(split.test_digits)),
        "max_difference_from_sklearn": check_agreement(pipeline, split.test_pixels, probabilities),
    }
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    artifacts.write_json(folder / "metrics.json", metrics)
    artifacts.write_manifest(HERE / "model.yaml", folder / "model.yaml", metrics)
    samples = write_samples(folder, split, probabilities)
    check_samples(folder)
    names = ["model.onnx", "labels.txt", "model.yaml", "metrics.json", *samples]
    artifacts.finish(folder, fingerprint(), names)
    return metrics


def main(arguments: list[str] | None = None) -> int:
    """The command: 0 when the folder holds a good model, 1 when a check failed."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.digits.train",
        description="Train a handwritten-digit classifier and write it as a Penstock model folder. Takes seconds.",
        epilog="Does nothing when the folder already holds an unchanged build from the same code and libraries.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/models/digits"),
        metavar="DIR",
        help="folder to write (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="build even if the folder is up to date")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    try:
        if not options.force and artifacts.is_current(options.out, fingerprint()):
            print(f"{options.out} is up to date; --force rebuilds it")
            return 0
        metrics = build(options.out)
    except artifacts.CheckFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"test accuracy {metrics['test_accuracy']:.4f} on {metrics['test_images']:.0f} held-out images; "
        f"ONNX and scikit-learn differ by at most {metrics['max_difference_from_sklearn']:.1e}"
    )
    print(f"wrote {options.out} in {time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
