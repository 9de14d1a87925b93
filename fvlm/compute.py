"""Device, threads, precision and determinism of a stage."""

import torch

from .errors import InputError
from .params import Compute, Precision


def set_up(compute: Compute, local_rank: int = 0) -> torch.device:
    """Apply `compute` to this process and return its device, the `local_rank`-th of the machine.

    On the CPU algorithms are deterministic: the same params give the same bytes on the same machine. The number of
    threads is set here and in `fvlm.cli`, since Snakemake's --cores (and the OMP_NUM_THREADS that it exports) must not
    change a sum.

    On a GPU they are not: its bits change with its model all the same, and the price has not been measured. What is
    called float32 is float32 there, too: TF32 has the ten mantissa bits of half precision, which divided by a
    temperature of 0.01 move a logit by 0.1.

    Raises:
        InputError: device is cuda and there is none, or none for this process, or it cannot compute in bfloat16.
    """
    if compute.device == "cpu":
        return set_up_cpu(compute.threads)
    torch.set_num_threads(compute.threads)
    torch.use_deterministic_algorithms(False)
    if not torch.cuda.is_available():
        raise InputError("params.yaml: compute.device: expected a CUDA device, found none; set it to cpu")
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"params.yaml: compute.processes: expected a GPU for each process of this machine, found "
            f"{torch.cuda.device_count()}; lower it (and raise train.accumulation by as much to keep the memory)"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if compute.precision == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(
            f"params.yaml: compute.precision: {torch.cuda.get_device_name(device)} does not compute in bfloat16; "
            "set it to float32"
        )
    return device


def set_up_cpu(threads: int) -> torch.device:
    """`set_up` for a stage that computes on the CPU whatever `compute` says."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # it would also overwrite all new memory with NaN before an operator fills it: a second pass over every activation
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device("cpu")


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Layers called inside compute in `precision`; their weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
