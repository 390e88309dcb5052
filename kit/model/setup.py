"""Set up what every script works with: the device, the model on it, and how they are recorded."""

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from kit.device import arithmetic
from kit.device import device as devices
from kit.device.device import Device, device_errors, require_dtype
from kit.device.health import SILENCERS, Fallbacks, HealthChecks
from kit.errors import KitError
from kit.model import model as models
from kit.model import preprocessing
from kit.model.images import Inputs
from kit.model.preprocessing import Preprocessing
from kit.options import Options
from kit.output import RunLog
from kit.records import DeviceArithmetic, DeviceInfo, InputInfo, ModelInfo, Patch

if TYPE_CHECKING:
    from npu_patch import Status

PRODUCTS = ("matrix product", "convolution")  # that --strict-fp32 is about
HOW_TO_DOWNLOAD = "--download modelscope fetches the real ones"


@dataclass(frozen=True)
class Setup:
    """What a run works with: a device, and the model's parts that do not depend on where it is."""

    device: Device
    dtype: torch.dtype
    model: PreTrainedModel  # on the CPU in fp32, in evaluation mode
    steps: Preprocessing
    model_info: ModelInfo
    health: HealthChecks
    load_ms: float  # of the model
    # What the device was found to compute in; None for the CPU, and before it is measured.
    arithmetic: DeviceArithmetic | None = None


def report_fallbacks(fallen: Fallbacks, log: RunLog) -> None:
    """Warn of operators that the NPU back end computed on the CPU."""
    if fallen.names is None:
        log.warning(
            "Operators that fall back to the CPU are unknown: "
            f"{' and '.join(SILENCERS)} silence torch_npu's messages; unset them"
        )
    elif fallen.names:
        log.warning(
            f"Not all of this ran on the NPU: {', '.join(fallen.names)} fell back to the CPU"
        )


def open_device(
    options: Options, status: "Status", log: RunLog, local_rank: int = 0
) -> tuple[Patch, Device]:
    """Return what npu_patch did, for the record, and the device, its fp32 modes set.

    npu_patch's one line is logged, as a warning where something is broken. The device is that of
    `local_rank` where the options name none; a KitError where it is not there.
    """
    (log.warning if status.fix else log.info)(status.message)
    device = devices.choose(
        options.device, patched=status.applied, patch_reason=status.reason, local_rank=local_rank
    )
    if device.type == "cpu" and options.device == "auto":
        log.warning("No NPU and no GPU is available: running on the CPU, which validates no NPU")
    devices.quiet_libraries()
    if devices.use_compiled_operators(device):
        log.info(
            f"{device.name} compiles operators at run time by default: CANN's compiled ones are "
            "used instead (jit_compile and allow_internal_format off)"
        )
    if options.strict_fp32:
        devices.use_strict_fp32()
    return Patch(applied=status.applied, reason=status.reason), device


def set_up(options: Options, inputs: Inputs, device: Device, log: RunLog) -> Setup:
    """Load the model on the CPU and prepare all else for it; KitError where something is unfit."""
    folder, hashed = inputs.weights.folder, inputs.weights_sha256
    log.info(f"Loading model from: {folder or f'seeded random weights (seed {options.seed})'}")
    if folder is None:
        log.warning(
            "No weights found: the features mean nothing, shapes and speed are real; "
            f"{HOW_TO_DOWNLOAD}"
        )
    start = time.perf_counter()
    if folder is None:
        model = models.random_model(options.seed, options.attention)
    else:
        model = models.load(folder, options.attention)
    load_ms = (time.perf_counter() - start) * 1e3
    if hashed is None:
        sha256 = models.sha256_of_tensors(model.state_dict().items())
    else:
        sha256 = hashed.result()
    steps = preprocessing.load(folder)
    if options.size is not None:
        steps = steps.with_size(options.size)
    has_attention = models.has_attention(model.config)
    info = ModelInfo(
        weights=None if folder is None else str(folder),
        source=inputs.weights.source_of(sha256),
        sha256=sha256,
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=options.dtype,
        attention=options.attention if has_attention else None,
    )
    dtype = require_dtype(device, options.dtype)
    return Setup(device, dtype, model, steps, info, HealthChecks(device), load_ms)


def with_arithmetic(setup: Setup, log: RunLog, own_gelu: arithmetic.OwnGelu | None = None) -> Setup:
    """Return the setup with what the device computes in, measured as it is set now.

    `own_gelu` makes a context in which GELU is the chip's own; None where it always is. A KitError
    where --strict-fp32 is on and products are reduced all the same.
    """
    device = setup.device
    if device.type == "cpu":
        return setup
    dtype = arithmetic.name_of(setup.dtype)
    asked = {"GELU": "erf", arithmetic.CHIPS_GELU: "erf"}
    if dtype == "fp32":
        products, convolution = devices.float_modes(device)
        asked |= {"matrix product": products, "attention": products, "convolution": convolution}
    measured = arithmetic.measure(device, dtype, asked, own_gelu=own_gelu)
    for row in measured.operators:
        if arithmetic.is_less_exact(row) and row.operator not in ("GELU", arithmetic.CHIPS_GELU):
            log.warning(
                f"{row.operator} on {device.name}: {row.found} where {row.asked} was asked for "
                f"(nearest {row.nearest}, {arithmetic.residual_words(row)} away)"
            )
    if dtype == "fp32" and {products, convolution} == {"fp32"}:
        kinds = {kind: arithmetic.multiplies_in(measured, kind, "fp32") for kind in PRODUCTS}
        if reduced := [f"{kind} in {found}" for kind, found in kinds.items() if found != "fp32"]:
            raise KitError(
                f"--strict-fp32: {device.name} computes {', '.join(reduced)} whatever is set; "
                "leave the option out, and the run is judged by what the device computes in"
            )
    if not measured.repeatable:
        log.warning(f"{device.name} gives other bits when the same product is computed again")
    setup.health.after("measuring its arithmetic")
    return replace(setup, arithmetic=measured)


def move_model(setup: Setup, log: RunLog | None = None) -> PreTrainedModel:
    """Move the model to the device and into the dtype, and prove that the device computes."""
    device = setup.device
    with device_errors("moving the model to the device"):
        model: PreTrainedModel = setup.model.to(device.torch_device, setup.dtype)
    setup.health.after("moving the model")
    if log is not None:
        log.info(f"Model moved to {device.label} device: {device.name}")
    return model


def model_input(
    setup: Setup, pixels_batch: torch.Tensor, log: RunLog | None = None
) -> torch.Tensor:
    """Move preprocessed images, float32 on the CPU, batch x 3 x rows x columns, to the device.

    In the run's dtype. `log` is told of a size that is not a multiple of the patch size. A KitError
    where the input is smaller than one patch.
    """
    require_patch(setup, pixels_batch)
    rows, columns = pixels_batch.shape[-2:]
    patch = models.patch_size(setup.model.config)
    if log is not None and (rows % patch or columns % patch):
        log.warning(
            f"{rows}x{columns} is not a multiple of the {patch}-pixel patch: the model crops the "
            f"last {rows % patch} rows and {columns % patch} columns, which leaves "
            f"{rows - rows % patch}x{columns - columns % patch}"
        )
    with device_errors("copying the input to the device"):
        return pixels_batch.to(setup.device.torch_device, setup.dtype)


def require_patch(setup: Setup, pixels_batch: torch.Tensor) -> None:
    """Raise a KitError where images, batch x 3 x rows x columns, are smaller than one patch."""
    rows, columns = pixels_batch.shape[-2:]
    patch = models.patch_size(setup.model.config)
    if min(rows, columns) < patch:
        raise KitError(
            f"an input of {rows}x{columns} is smaller than the model's {patch}x{patch} patch: "
            f"use a --size of at least {patch}, best a multiple of it"
        )


def views(pixels: torch.Tensor, number: int) -> torch.Tensor:
    """Return so many different images, 8 at most: mirrored, upside down, as a negative."""
    every = []
    for view in range(number):
        axes = [axis for axis, bit in ((-1, 1), (-2, 2)) if view & bit]
        every.append((-pixels if view & 4 else pixels).flip(axes))
    return torch.cat(every)


def device_info(setup: Setup, cpu_fallbacks: tuple[str, ...] | None) -> DeviceInfo:
    """Return the device's part of the record."""
    matmul, convolution = devices.float_modes(setup.device)
    if setup.dtype == torch.float32:
        matmul = arithmetic.multiplies_in(setup.arithmetic, "matrix product", matmul)
        convolution = arithmetic.multiplies_in(setup.arithmetic, "convolution", convolution)
    jit_compile, internal_format = devices.torch_npu_switches(setup.device)
    free, total = devices.memory_info(setup.device)
    return DeviceInfo(
        type=setup.device.type,
        index=setup.device.index,
        name=setup.device.name,
        count=setup.device.count,
        torch_device=str(setup.device.torch_device),
        matmul_fp32=matmul,
        convolution_fp32=convolution,
        arithmetic=setup.arithmetic,
        cpu_fallbacks=cpu_fallbacks,
        jit_compile=jit_compile,
        internal_format=internal_format,
        memory_free_bytes=free,
        memory_total_bytes=total,
        known_answer_checks=setup.health.passed,
    )


def input_info(setup: Setup, inputs: Inputs, shape: tuple[int, ...], images: int) -> InputInfo:
    """Return the input's part of the record, of a run's first image."""
    return InputInfo(
        image=str(inputs.first.path),
        sha256=inputs.first.sha256,
        width=inputs.first.width,
        height=inputs.first.height,
        shape=shape,
        preprocessing=str(setup.steps),
        images=images,
    )
