"""How fast pictures reach the detector, and where the time goes.

    python -m benchmarks.input_pipeline                          # 640 x 480 JPEGs, made here
    python -m benchmarks.input_pipeline --root data/coco2017     # a folder in COCO's layout
    python -m benchmarks.input_pipeline --device cuda --workers 0 4 8 16 --json input_pipeline.json

Three tables: the steps of one picture in one process; the decoders that are installed; images/s of the whole pipeline
by number of loader processes. Jitter 0.1 to 2.0 at 1024 pixels, as the paper's recipe has it.

Measured 2026-11-22 on one core of a busy 2-core Intel Xeon, ms a picture, 80 of train2017's pictures (154 kB each):

    read 0.03, decode 4.1, crop 0.1, collate 0.2: a loader process makes 226 images/s a core by these, 134 to 174 by the
        processor time of whole runs (processes, queues and shared memory included)
    draw on a CPU 17 with jitter, 13 at test time; the plain way (resize whole, crop, normalise, pad, stack) 38
    decoders: Pillow 4.1, torchvision 3.4, OpenCV 3.3, simplejpeg 3.1; all give Pillow's pixels, bit for bit

Pillow stays: a run of 100 images/s would save a tenth of one core by the fastest of the others, and Pillow alone reads
every mode of JPEG and PNG and is in the project anyway. The full recipe needs 100 images/s: one loader process or two.
Drawing on a GPU was not measured, for want of one.
"""

import argparse
import dataclasses
import importlib
import io
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fvlm.data.coco import load_instances
from fvlm.data.dataset import TrainingPictures, read_picture
from fvlm.data.loading import pack_crops, packed_training_batches, training_batches, unpack_crops
from fvlm.data.transforms import Crop, fit, render, scale_jitter
from fvlm.errors import InputError
from fvlm.io import write_json
from fvlm.params import load_params

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
SIZE_HW = (480, 640)  # the most frequent one of COCO
JPEG_QUALITY = 86  # gives noise of a photograph's spectrum COCO's 165 kB
LOADING = ("read file", "decode", "crop", "collate")  # the steps of a loader process
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "emoji.yaml"


def main() -> None:
    """Measure, print, write."""
    options = _options()
    torch.set_num_threads(1)  # all rates are those of one core; loader processes have one thread each
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or make_pictures(Path(folder), options.pictures)
        split = load_instances(root / "annotations" / "instances_train2017.json")
        split["images"] = split["images"][: options.pictures]
        kept = {image["id"] for image in split["images"]}
        split["annotations"] = [a for a in split["annotations"] if a["image_id"] in kept]
        image_dir = root / "train2017"
        paths = [image_dir / image["file_name"] for image in split["images"]]
        result: dict[str, Any] = {"machine": machine(device), "pictures": about(paths, options)}
        result["steps_ms"] = steps(paths, options, device)
        result["decoders"] = decoders(paths)
        result["images_per_s"] = [throughput(split, image_dir, options, device, workers) for workers in options.workers]
    show(result)
    if options.json:
        write_json(options.json, result)


def make_pictures(root: Path, count: int) -> Path:
    """Write `count` JPEGs with a photograph's 1 / f spectrum and their instances below `root`, in COCO's layout."""
    rng = np.random.default_rng(0)
    (root / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    height, width = SIZE_HW
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / width
    images, annotations = [], []
    for image_id in range(1, count + 1):
        noise = np.fft.rfft2(rng.normal(size=(3, height, width))) / frequency
        waves = np.fft.irfft2(noise, s=SIZE_HW)
        pixels = 120 + 50 * waves / waves.std()
        name = f"{image_id:012d}.jpg"
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        picture.save(root / "train2017" / name, quality=JPEG_QUALITY)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for i in range(7):  # boxes on an average picture of COCO
            bbox = [20.0 * i, 10.0 * i, 100.0, 120.0]
            annotations.append({"id": 10 * image_id + i, "image_id": image_id, "category_id": 1, "bbox": bbox})
    write_json(
        root / "annotations" / "instances_train2017.json",
        {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]},
    )
    return root


def steps(paths: list[Path], options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Milliseconds a picture of each step, in one process; first what a loader process does, then the training one."""
    size = options.size
    stored = [read_picture(path) for path in paths]
    crops = [jittered_crop(image, i, size) for i, image in enumerate(stored)]
    batches = [crops[first : first + options.batch_size] for first in range(0, len(crops), options.batch_size)]
    packed = [pack_crops(batch) for batch in batches]
    if device.type == "cuda":
        packed = [p._replace(pixels=p.pixels.pin_memory()) for p in packed]
    on_device = [unpack_crops(batch, device) for batch in packed]
    contents = [path.read_bytes() for path in paths]
    seeds = range(len(stored))
    resized = [whole_picture_resized(image, i, size) for i, image in zip(seeds[:8], stored, strict=False)]
    few = len(resized)
    count = len(paths)
    found = {
        "read file": timed(lambda: each(Path.read_bytes, paths), count, device),
        "decode": timed(lambda: each(decode_pillow, contents), count, device),
        "crop": timed(lambda: each(jittered_crop, stored, seeds, [size] * count), count, device),
        "collate": timed(lambda: each(pack_crops, batches), count, device),
        "copy to device": timed(lambda: each(unpack_crops, packed, [device] * len(packed)), count, device),
        "resample, normalise, pad": timed(
            lambda: each(lambda batch: render(batch, size, MEAN, STD), on_device), count, device
        ),
        "test-time form: resample, normalise, pad": timed(
            lambda: each(lambda image: render([fit(image, size)], size, MEAN, STD), stored[:few]), few, device
        ),
    }
    # the plain way, for comparison: everything in the loader process, float32 canvases between the processes
    found["plain: resize whole, crop"] = timed(
        lambda: each(whole_picture_resized, stored[:few], seeds[:few], [size] * few), few, device
    )
    found["plain: normalise, pad, stack"] = timed(lambda: normalise_pad_stack(resized, size), few, device)
    return found


def jittered_crop(image: Tensor, seed: int, size: int) -> Crop:
    generator = torch.Generator().manual_seed(seed)
    return scale_jitter(image, torch.zeros(7, 4), generator, canvas_size=size, scale_range=(0.1, 2.0), flip=0.5)[0]


def whole_picture_resized(image: Tensor, seed: int, size: int) -> Tensor:
    """The part on the canvas, by resizing the whole picture as `scale_jitter` with the same seed would."""
    draws = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    scale = round((0.1 + 1.9 * draws[0]) * size) / max(image.shape[1:])
    size_hw = [max(round(side * scale), 1) for side in image.shape[1:]]
    resized = F.interpolate(image[None].float(), size=size_hw, mode="bilinear", align_corners=False)[0]
    top, left = (int(draw * (max(side - size, 0) + 1)) for draw, side in zip(draws[2:], size_hw, strict=True))
    return resized[:, top : top + size, left : left + size]


def normalise_pad_stack(parts: list[Tensor], size: int) -> Tensor:
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    canvases = []
    for part in parts:
        canvas = torch.zeros(3, size, size)
        canvas[:, : part.shape[1], : part.shape[2]] = (part / 255 - mean) / std
        canvases.append(canvas)
    return torch.stack(canvases)


def decoders(paths: list[Path]) -> dict[str, dict[str, float]]:
    """Milliseconds a picture, and the largest difference to Pillow in grey levels, of each decoder at hand."""
    contents = [path.read_bytes() for path in paths]
    found = {}
    for name, decode in installed_decoders().items():
        try:
            largest = max(int(np.abs(decode(c).astype(int) - decode_pillow(c)).max()) for c in contents[:16])
        except (RuntimeError, ValueError, OSError) as error:
            print(f"{name}: left out: {' '.join(str(error).split())[:100]}", file=sys.stderr)
            continue
        found[name] = {
            "ms": timed(lambda decode=decode: each(decode, contents), len(contents), torch.device("cpu")),  # type: ignore[misc]
            "largest_difference": largest,
        }
    return found


def decode_pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def installed_decoders() -> dict[str, Callable[[bytes], np.ndarray]]:
    """By name: JPEG bytes to (H, W, 3) uint8 RGB, with the slow but exact DCT that Pillow uses."""
    from torchvision.io import ImageReadMode, decode_jpeg

    def torchvision_on(device: str) -> Callable[[bytes], np.ndarray]:
        def decode(content: bytes) -> np.ndarray:
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return decode_jpeg(data, mode=ImageReadMode.RGB, device=device).permute(1, 2, 0).cpu().numpy()

        return decode

    found: dict[str, Callable[[bytes], np.ndarray]] = {
        "Pillow": decode_pillow,
        "torchvision": torchvision_on("cpu"),
    }
    if torch.cuda.is_available():
        found["torchvision on CUDA, one by one"] = torchvision_on("cuda")
    if simplejpeg := _optional("simplejpeg"):
        found["simplejpeg"] = lambda content: simplejpeg.decode_jpeg(content, "RGB")
    if turbojpeg := _optional("turbojpeg"):
        turbo = turbojpeg.TurboJPEG()
        found["PyTurboJPEG"] = lambda content: turbo.decode(content, pixel_format=turbojpeg.TJPF_RGB)
    if cv2 := _optional("cv2"):
        cv2.setNumThreads(1)
        as_stored = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        found["OpenCV"] = lambda content: cv2.cvtColor(
            cv2.imdecode(np.frombuffer(content, np.uint8), as_stored), cv2.COLOR_BGR2RGB
        )
    return found


def throughput(
    split: dict[str, Any], image_dir: Path, options: argparse.Namespace, device: torch.device, workers: int
) -> dict[str, float]:
    """Images/s of loading alone, and of `training_batches` as the training loop takes them.

    By the clock, without the first batch, in which the loader processes start; and by the processor time of all
    processes, which other programs on the machine do not change.
    """
    train = dataclasses.replace(
        load_params(RECIPE).train,
        batch_size=options.batch_size,
        steps=options.steps + 1,
        workers=workers,
        scale_jitter=(0.1, 2.0),
        flip=0.5,
    )
    pictures = TrainingPictures(split, image_dir, train, canvas_size=options.size, mean=MEAN, std=STD)
    before = processor_seconds()
    packed = packed_training_batches(pictures, train, after_step=0, device=device, rank=0, world_size=1)
    loaded = rate_of(packed, options, device)
    seconds = processor_seconds() - before
    drawn = rate_of(training_batches(pictures, train, after_step=0, device=device), options, device)
    return {
        "workers": workers,
        "loaded": loaded,
        "loaded_per_core": train.steps * train.batch_size / seconds,
        "drawn": drawn,
    }


def rate_of(batches: Iterable[Any], options: argparse.Namespace, device: torch.device) -> float:
    """Images/s of all batches but the first."""
    iterator = iter(batches)
    next(iterator)
    synchronise(device)
    began = time.perf_counter()
    for _ in iterator:
        pass
    synchronise(device)
    return options.steps * options.batch_size / (time.perf_counter() - began)


def processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def timed(run: Callable[[], Any], count: int, device: torch.device, repeats: int = 5) -> float:
    """Milliseconds of `run` by `count`, the least of `repeats`: processor time, or time by the clock for a GPU."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    found = []
    for _ in range(repeats):
        synchronise(device)
        began = clock()
        run()
        synchronise(device)
        found.append(clock() - began)
    return 1000 * min(found) / count


def each(function: Callable[..., Any], *arguments: Iterable[Any]) -> None:
    """Call `function` with each row of `arguments`; the results are dropped at once."""
    for row in zip(*arguments, strict=True):
        function(*row)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    from PIL import features

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pillow_libjpeg_turbo": features.version("libjpeg_turbo"),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def about(paths: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "source": str(options.root or "made here"),
        "count": len(paths),
        "mean_kilobytes": sum(path.stat().st_size for path in paths) / len(paths) / 1000,
        "canvas": options.size,
        "batch_size": options.batch_size,
    }


def show(result: dict[str, Any]) -> None:
    """Print the three tables."""
    for section in ("machine", "pictures"):
        print(", ".join(f"{key} {_short(value)}" for key, value in result[section].items()))
    print("\nms a picture, one process, one thread")
    for name, ms in result["steps_ms"].items():
        print(f"  {name:42}{ms:8.2f}")
    loading = sum(result["steps_ms"][name] for name in LOADING)
    print(f"  {'a loader process in all':42}{loading:8.2f}   = {1000 / loading:.0f} images/s a core")
    print("\ndecoder                             ms a picture  largest difference to Pillow, grey levels")
    for name, row in result["decoders"].items():
        print(f"  {name:34}{row['ms']:12.2f}{row['largest_difference']:12.0f}")
    print("\nworkers   images/s loaded   per core-second   images/s loaded and drawn")
    for row in result["images_per_s"]:
        print(f"{row['workers']:7}{row['loaded']:18.1f}{row['loaded_per_core']:18.1f}{row['drawn']:28.1f}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _optional(name: str) -> Any:
    """The module, or None where it is not installed or does not find its library."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError):
        return None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("input_pipeline", description="How fast pictures reach the detector.")
    parser.add_argument("--root", type=Path, help="a folder in COCO's layout (default: pictures made here)")
    parser.add_argument("--pictures", type=int, default=64, help="pictures that are used (default: 64)")
    parser.add_argument("--size", type=int, default=1024, help="side of the canvas, pixels (default: 1024)")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures in a batch (default: 16)")
    parser.add_argument("--steps", type=int, default=20, help="batches that are timed (default: 12)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of loader processes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where canvases are drawn")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a CUDA device, found none")
    return options


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
