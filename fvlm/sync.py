"""Tell DVC what Snakemake built, or Snakemake what DVC built. Builds nothing, and never records a stale result.

Each engine keeps its own record of what the files were made from: DVC in dvc.lock, Snakemake below .snakemake/metadata.
A run of one leaves the other's record behind, and the other would train again.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from .errors import InputError


def sync(*, if_complete: bool = False) -> str:
    """Bring the engine that is behind up to the one that is up to date.

    Args:
        if_complete: whether it is well, too, if neither is up to date: nothing is recorded then.

    Returns:
        What was done, in one sentence.

    Raises:
        InputError: neither engine is up to date, so that nothing is safe to record; or one of them fails.
    """
    with ThreadPoolExecutor() as pool:  # each takes seconds to start
        asked = [pool.submit(question) for question in (_snakemake_is_current, _dvc_is_current)]
    snakemake_is_current, dvc_is_current = (answer.result() for answer in asked)
    if snakemake_is_current and dvc_is_current:
        return "Snakemake and DVC agree: everything is up to date"
    if snakemake_is_current:
        # relinking would copy cached outputs back with new time stamps, which Snakemake would have to hash again
        _call("dvc", "commit", "--force", "--no-relink", "--quiet")
        if not _dvc_is_current():
            raise InputError(
                "sync: `dvc status` still reports changes after `dvc commit`; run `dvc status` to see them"
            )
        return "recorded Snakemake's results in dvc.lock: `dvc repro` has nothing to run"
    if dvc_is_current:
        # --touch --forceall runs no stage: it refreshes time stamps in the order of the graph and writes the metadata
        _call("snakemake", "all", "--cores", "1", "--touch", "--forceall", "--no-hooks", "--quiet", "all")
        if not _snakemake_is_current():
            raise InputError("sync: Snakemake still has work to do after `--touch`; run `snakemake all -n` to see it")
        return "recorded DVC's results for Snakemake: `snakemake all` has nothing to do"
    if if_complete:
        return "sync: nothing recorded yet: some results are missing or older than what they are made from"
    raise InputError(
        "sync: nothing recorded, since neither engine has all of its results; "
        "run `snakemake all --cores N` or `dvc repro` to the end first"
    )


def _snakemake_is_current() -> bool:
    """True where `snakemake all` would run nothing and knows what every result was made from."""
    from snakemake.common import NOTHING_TO_BE_DONE_MSG

    process = _call("snakemake", "all", "--cores", "1", "--dry-run")
    plan = process.stdout + process.stderr
    # without metadata (files that DVC built) Snakemake finds nothing to do, but will not see the next change of params
    return NOTHING_TO_BE_DONE_MSG in plan and "provenance/metadata" not in plan


def _dvc_is_current() -> bool:
    """True where `dvc repro` would run nothing."""
    return _call("dvc", "status", "--quiet", may_return=(0, 1)).returncode == 0


def _call(tool: str, *arguments: str, may_return: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    process = subprocess.run([sys.executable, "-m", tool, *arguments], capture_output=True, text=True)
    if process.returncode not in may_return:
        said = " ".join((process.stderr.strip() or process.stdout.strip()).split())
        raise InputError(f"sync: `{tool} {' '.join(arguments)}` failed (exit code {process.returncode}): {said[-600:]}")
    return process
