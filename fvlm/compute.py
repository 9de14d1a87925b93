"""Device, threads and determinism of a stage."""

import os

import torch

from .errors import InputError
from .params import Compute


def set_up(compute: Compute) -> torch.device:
    """Apply `compute` to this process and return its device.

    Algorithms are deterministic: the same params give the same bytes on the same machine. The number of threads is
    set here and in `fvlm.cli`, since Snakemake's --cores (and the OMP_NUM_THREADS that it exports) must not change a
    sum.

    Raises:
        InputError: device is cuda and there is none.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS wants it before the first call
    torch.set_num_threads(compute.threads)
    torch.use_deterministic_algorithms(True)
    # it would also overwrite all new memory with NaN before an operator fills it: a second pass over every activation
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise InputError("params.yaml: compute.device: expected a CUDA device, found none; set it to cpu")
    return torch.device(compute.device)
