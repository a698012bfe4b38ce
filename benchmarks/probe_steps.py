"""The steps of the GPU probe; each is given the device's name and returns what it found, or raises.

Without a GPU the same steps run on DALI's CPU backend, as far as it has the operator.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FULL_HW = (1280, 1918)  # of a Carvana image
_LIBRARIES = ("nvjpeg", "nvcomp", "nvimgcodec", "libdali", "libnpp", "cufft", "libcudart", "libcuda.so", "nvidia-ml")
_SKIPPED = {"skipped": "needs a GPU"}


def make_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Make smooth shapes with some noise, RGB uint8 (H, W, 3)."""
    import cv2

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 32 + 2, width // 32 + 2, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def make_jpeg(picture: np.ndarray, *, progressive: bool = False, subsampling: str = "420") -> np.ndarray:
    """Encode a picture; bytes as a uint8 array. `subsampling`: 420, 422, 444, or grey."""
    from PIL import Image

    stream = io.BytesIO()
    image = Image.fromarray(picture)
    if subsampling == "grey":
        image.convert("L").save(stream, "JPEG", quality=92, progressive=progressive)
    else:
        factors = {"444": 0, "422": 1, "420": 2}[subsampling]
        image.save(stream, "JPEG", quality=92, progressive=progressive, subsampling=factors)
    return np.frombuffer(stream.getvalue(), dtype=np.uint8)


def run_once(define: Callable[[], Any], device: str, batch_size: int = 1, num_threads: int = 4) -> list[Any]:
    """Build a pipeline of `define`'s outputs, run it once, and return the outputs as numpy arrays of the first sample."""
    pipe = build(define, device, batch_size, num_threads)
    outputs = pipe.run()
    return [np.asarray(output.as_cpu().at(0)) for output in outputs]


def build(define: Callable[[], Any], device: str, batch_size: int, num_threads: int) -> Any:
    from nvidia.dali import Pipeline

    on_gpu = device != "cpu"
    pipe = Pipeline(batch_size=batch_size, num_threads=num_threads, device_id=0 if on_gpu else None, prefetch_queue_depth=1)
    with pipe:
        outputs = define()
        pipe.set_outputs(*(outputs if isinstance(outputs, tuple) else (outputs,)))
    pipe.build()
    return pipe


def feed(samples: Sequence[np.ndarray], device: str = "cpu", layout: str | None = None) -> Any:
    """Define an input that gives the same samples again and again."""
    from nvidia.dali import fn

    given = fn.external_source(source=lambda: list(samples), layout=layout)
    return given if device == "cpu" else given.gpu()


def decode(jpegs: Sequence[np.ndarray], device: str, **settings: Any) -> Any:
    """Define the decoding of JPEGs, on the GPU where there is one."""
    from nvidia.dali import fn, types

    settings = {"output_type": types.RGB, "adjust_orientation": False, "jpeg_fancy_upsampling": True} | settings
    return fn.decoders.image(feed(jpegs), device="cpu" if device == "cpu" else "mixed", **settings)


def differ(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Say how far two images are apart: PSNR in decibels (99 where equal), and the greatest difference."""
    if found.shape != expected.shape:
        raise ValueError(f"shape {found.shape}, expected {expected.shape}")
    difference = found.astype(np.float64) - expected
    error = float(np.square(difference).mean())
    return {
        "psnr": 99.0 if error == 0 else round(10 * float(np.log10(255**2 / error)), 2),
        "max_difference": float(np.abs(difference).max()),
    }


def ask_torch(device: str) -> dict[str, Any]:
    """PyTorch, its CUDA, the GPU, and whether a matrix product runs there."""
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        found |= {"capability": list(torch.cuda.get_device_capability(0)), "multiprocessors": properties.multi_processor_count}
    square = torch.ones(512, 512, device=device, dtype=torch.bfloat16)
    found["product"] = float((square @ square)[0, 0])
    return found


def ask_dali(device: str) -> dict[str, Any]:
    """DALI's version, and the libraries that a decoding pipeline brought into the process."""
    import nvidia.dali
    from nvidia.dali import backend

    run_once(lambda: decode([make_jpeg(make_picture(64, 96))], device), device)
    loaded = {
        Path(line.split()[-1]).name
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "/" in line and any(name in line for name in _LIBRARIES)
    }
    found: dict[str, Any] = {"dali": nvidia.dali.__version__, "loaded": sorted(loaded)}
    for name in ("GetCudaVersion", "GetCufftVersion", "GetNppVersion", "GetNvjpegVersion", "GetNvimgcodecVersion"):
        ask = getattr(backend, name, None)
        if ask is not None:
            try:
                found[name] = ask()
            except Exception as error:  # a library that is not there
                found[name] = f"{type(error).__name__}: {error}"
    return found


def decode_baseline(device: str) -> dict[str, Any]:
    """A full-size baseline JPEG against libjpeg-turbo, with and without fancy upsampling of the chroma."""
    import simplejpeg

    jpeg = make_jpeg(make_picture(*FULL_HW))
    expected = simplejpeg.decode_jpeg(jpeg.tobytes(), "RGB")
    found: dict[str, Any] = {"bytes": len(jpeg)}
    for name, fancy in (("fancy", True), ("plain", False)):
        found[name] = differ(
            run_once(lambda fancy=fancy: decode([jpeg], device, jpeg_fancy_upsampling=fancy), device)[0], expected
        )
    return found


def decode_kinds(device: str) -> dict[str, Any]:
    """Kinds of JPEGs that data sets hold, and odd sizes, against libjpeg-turbo."""
    import simplejpeg

    found: dict[str, Any] = {}
    for name, hw, options in (
        ("4:4:4", (321, 479), {"subsampling": "444"}),
        ("4:2:2", (321, 479), {"subsampling": "422"}),
        ("grey", (321, 479), {"subsampling": "grey"}),
        ("progressive", (321, 479), {"progressive": True}),
        ("1 pixel wide", (40, 1), {}),
        ("small", (16, 24), {}),
    ):
        jpeg = make_jpeg(make_picture(*hw), **options)
        try:
            got = run_once(lambda jpeg=jpeg: decode([jpeg], device), device)[0]
            found[name] = differ(got, simplejpeg.decode_jpeg(jpeg.tobytes(), "RGB"))
        except Exception as error:  # one kind that fails says nothing of the next
            found[name] = f"{type(error).__name__}: {str(error)[:200]}"
    failed = [name for name, result in found.items() if isinstance(result, str)]
    if failed:
        raise RuntimeError(f"cannot decode {', '.join(failed)}: {found}")
    return found


def pass_by_dlpack(device: str) -> dict[str, Any]:
    """A decoded batch as a torch tensor: where it is, how it lies, and whether it stays as it was when the next batch comes."""
    import torch

    jpegs = [make_jpeg(make_picture(64, 96, seed)) for seed in range(4)]
    pipe = build(lambda: decode(jpegs, device), device, 4, 2)
    first = pipe.run()[0].as_tensor()
    tensor_NHWC = torch.from_dlpack(first)
    kept = tensor_NHWC.clone()
    address = first.data_ptr() if callable(getattr(first, "data_ptr", None)) else None
    del first
    for _ in range(8):
        pipe.run()
    return {
        "device": str(tensor_NHWC.device),
        "shape": list(tensor_NHWC.shape),
        "dtype": str(tensor_NHWC.dtype),
        "channels_last": tensor_NHWC.permute(0, 3, 1, 2).is_contiguous(memory_format=torch.channels_last),
        "without_copy": None if address is None else address == tensor_NHWC.data_ptr(),
        "stays": bool(torch.equal(kept, tensor_NHWC)),
    }


def compare_operators(device: str) -> dict[str, Any]:
    """The operators that the loader uses, on this device against DALI's CPU backend."""
    from nvidia.dali import fn, types

    picture, mask = make_picture(301, 407), (make_picture(301, 407, 1)[:, :, :1] // 16).astype(np.uint8)
    matrix = np.array([[0.9, -0.3, 40.0], [0.3, 0.9, -20.0]], dtype=np.float32)
    size = (160, 240)

    def define(where: str) -> tuple[Any, ...]:
        image, classes = feed([picture], where, "HWC"), feed([mask], where, "HWC")
        region = {"roi_start": np.float32([301, 20]), "roi_end": np.float32([5, 400])}
        resized = fn.resize(image, size=size, interp_type=types.INTERP_LINEAR, antialias=True, **region)
        bits = fn.cast((classes & types.Constant(np.uint8([8, 4]), device=where)) != 0, dtype=types.UINT8)
        return (
            resized,
            fn.warp_affine(image, matrix=matrix, size=size, interp_type=types.INTERP_LINEAR, fill_value=0),
            fn.warp_affine(classes, matrix=matrix, size=size, interp_type=types.INTERP_NN, fill_value=255),
            fn.color_twist(image, brightness=1.1, contrast=0.9, saturation=1.2, hue=10.0),
            bits,
        )

    expected = run_once(lambda: define("cpu"), "cpu")
    found = run_once(lambda: define("cpu" if device == "cpu" else "gpu"), device)
    names = ("resize, flipped", "warp linear", "warp nearest", "color_twist", "bits")
    return {
        name: differ(got, wanted) | {"unequal_share": float((got != wanted).mean())}
        for name, got, wanted in zip(names, found, expected, strict=True)
    }


def inflate_blocks(device: str) -> dict[str, Any]:
    """LZ4 blocks of 64 KiB, inflated on the GPU."""
    if device == "cpu":
        return _SKIPPED
    import lz4.block
    from nvidia.dali import fn

    size, num_blocks = 1 << 16, 20
    content = (make_picture(1024, 1280)[:, :, 0] // 32).reshape(-1)[: size * num_blocks]
    blocks = [lz4.block.compress(part.tobytes(), store_size=False) for part in content.reshape(num_blocks, size)]
    packed, sizes = np.frombuffer(b"".join(blocks), np.uint8), np.array([len(block) for block in blocks], np.int32)

    def define() -> Any:
        return fn.decoders.inflate(feed([packed], device), chunk_sizes=feed([sizes]), shape=[size], check_output_size=True)

    got = run_once(define, device)[0]
    if not np.array_equal(got.reshape(-1), content):
        raise RuntimeError(f"{int((got.reshape(-1) != content).sum())} of {content.size} bytes are wrong")
    return {"equal": True, "shape": list(got.shape)}


def decode_region(device: str) -> dict[str, Any]:
    """The regions of a batch of full-size JPEGs, decoded alone, several times: it has crashed before."""
    import simplejpeg
    from nvidia.dali import fn, types

    jpegs = [make_jpeg(make_picture(*FULL_HW, seed)) for seed in range(4)]
    starts = [np.array([16 * place, 32 * place + 8], np.int32) for place in range(4)]
    shapes = [np.array([600 + 7 * place, 800 + 5 * place], np.int32) for place in range(4)]

    def define() -> Any:
        where = {"start": feed(starts), "shape": feed(shapes), "axis_names": "HW"}
        settings = {"output_type": types.RGB, "jpeg_fancy_upsampling": True, "adjust_orientation": False}
        return fn.decoders.image_slice(feed(jpegs), device="cpu" if device == "cpu" else "mixed", **where, **settings)

    pipe = build(define, device, 4, 4)
    for _ in range(10):
        decoded = pipe.run()[0].as_cpu()
    expected = simplejpeg.decode_jpeg(jpegs[3].tobytes(), "RGB")[48 : 48 + 621, 104 : 104 + 815]
    return differ(np.asarray(decoded.at(3)), expected)


def measure_decoders(device: str) -> dict[str, Any]:
    """Decode by the JPEG unit alone, then by the other GPU decoders alone: which takes a baseline JPEG, and images/s."""
    if device == "cpu":
        return _SKIPPED
    from nvidia import nvimgcodec

    jpegs = [make_jpeg(make_picture(*FULL_HW, seed)).tobytes() for seed in range(8)] * 4
    found: dict[str, Any] = {}
    for name in ("HW_GPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU"):
        kind = getattr(nvimgcodec.BackendKind, name)
        decoder = nvimgcodec.Decoder(backends=[nvimgcodec.Backend(kind)])
        images = decoder.decode(jpegs)
        began_s = time.perf_counter()
        for _ in range(3):
            images = decoder.decode(jpegs)
        images[-1].cpu() if images[-1] is not None else None
        seconds = time.perf_counter() - began_s
        decoded = sum(image is not None for image in images)
        found[name] = {"decoded": decoded, "of": len(jpegs), "images_per_s": round(3 * decoded / seconds, 1)}
    return found


def measure_pipeline(device: str) -> dict[str, Any]:
    """Full-size JPEGs through `fn.decoders.image` alone, at several loads of the JPEG unit: images/s, and its use."""
    import torch
    from device_meter import DeviceMeter

    jpegs = [make_jpeg(make_picture(*FULL_HW, seed)) for seed in range(8)] * 4
    meter = DeviceMeter(torch.device("cuda:0" if device != "cpu" else "cpu"))
    meter.start()
    found: dict[str, Any] = {}
    for load in (0.0, 0.65, 1.0) if device != "cpu" else (0.0,):
        pipe = build(lambda load=load: decode(jpegs, device, hw_decoder_load=load), device, len(jpegs), 8)
        pipe.run()
        num_images, began_s, began_cpu_s = 0, time.perf_counter(), time.process_time()
        with meter.sampling():
            while time.perf_counter() < began_s + 1.5:
                pipe.run()
                num_images += len(jpegs)
            if device != "cpu":
                torch.cuda.synchronize()
        wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        found[f"hw_decoder_load={load}"] = {
            "images_per_s": round(num_images / wall_s, 1),
            "cores_used": round(cpu_s / wall_s, 2),
            **meter.read(),
        }
        del pipe
    return found | {"bytes": len(jpegs[0]), "no_shares_because": meter.missing}
