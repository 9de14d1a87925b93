"""Starting the processes of a training, and ending them as one: one line of error, one exit code, nothing left behind.

Torch is imported where it is needed only: the command line asks this module before every stage.
"""

import ctypes
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

from .errors import InputError
from .params import Compute

LAUNCHER = "FVLM_LAUNCHER"  # set by `launch` to its process id
FAILED = "fvlm/failed"  # counts the processes that failed, in torch's store
SPEAKING_S = 5.0  # that the processes of a machine may be apart when they come to the same error
FAILURE = 2  # exit code, that of bad input
LINUX_PR_SET_PDEATHSIG = 1


def under_torchrun() -> bool:
    """Whether this is one of several processes that torchrun, or another launcher with its variables, has started."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def rank() -> int:
    return int(os.environ["RANK"]) if under_torchrun() else 0


def local_rank() -> int:
    """Which of this machine's processes this is, and so which GPU it has."""
    return int(os.environ.get("LOCAL_RANK", rank())) if under_torchrun() else 0


def launch(compute: Compute, arguments: Sequence[str]) -> int:
    """Run `python -m fvlm ARGUMENTS` in `compute.processes` processes on this machine. Returns the exit code.

    This is what `torchrun --standalone --nproc-per-node N -m fvlm ...` does, through the same functions, without its
    report of many lines where one of them failed: that process has said what was wrong. The processes end with this
    one, however it ends.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[LAUNCHER] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=compute.processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # port 0: any that is free
        local_addr="localhost",  # not the machine's name, which need not resolve
        max_restarts=0,
        monitor_interval=0.1,
    )
    logging.disable(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)("-m", "fvlm", *arguments)
    except ChildFailedError as error:
        failed_rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        print(
            f"error: rank {failed_rank} of {compute.processes} training processes was ended by {name}"
            + (", perhaps for want of memory" if name == "SIGKILL" else "")
            + "; run the same command again to go on from the last checkpoint",
            file=sys.stderr,
        )
        return FAILURE
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        return 128 + error.sigval
    finally:
        logging.disable(logging.NOTSET)
    return 0


def enter() -> None:
    """To be called first by a process under torchrun: it shall end with its launcher, and only rank 0 prints."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(LINUX_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(launcher):  # it ended before the line above
            sys.exit(FAILURE)
    if rank() != 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)


def join(compute: Compute) -> int:
    """Connect this process with the others. Returns how many there are; 1, and no connection, outside of torchrun.

    Raises:
        InputError: their number is not that of the params.
    """
    size = int(os.environ["WORLD_SIZE"]) if under_torchrun() else 1
    if size != compute.processes:
        raise InputError(
            f"params.yaml: compute.processes: expected the {size} that torchrun started (--nproc-per-node times "
            f"--nnodes), got {compute.processes}; change either, or call `python -m fvlm` without torchrun"
        )
    if size > 1:
        import torch.distributed as dist

        dist.init_process_group("nccl" if compute.device == "cuda" else "gloo")
    return size


def leave() -> None:
    """Undo `join`."""
    dist = _torch_distributed()
    if dist is not None:
        dist.destroy_process_group()


def is_first_to_fail() -> bool:
    """Whether no other process has failed before, and so whether this one has to say what is wrong.

    Where one fails, the others fail too: at the same line, or for want of the first. Before they are connected each
    machine's first process speaks.
    """
    dist = _torch_distributed()
    if dist is None:
        if local_rank() != 0:
            time.sleep(SPEAKING_S)  # torchrun ends them all when one has ended, and the first has yet to speak
        return local_rank() == 0
    try:
        return dist.distributed_c10d._get_default_store().add(FAILED, 1) == 1
    except RuntimeError:  # the store was in a process that has ended, so that one has failed before
        return False


def _torch_distributed() -> Any:
    """torch.distributed, where this process is connected."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None
