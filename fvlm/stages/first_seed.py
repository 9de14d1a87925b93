"""Stage `first_seed`: the run of the first of `seeds` at the paths without a seed, for one setting.

Each run lies where its own seed says, so that a seed that is added, dropped or moved in the list trains no other again.
People, `check` and the report look for a setting's run at runs/<setting>/ and metrics/<setting>.json. These are copies:
neither engine's graph can give a file two names, and DVC's matrix cannot name its first member in another way.
"""

import shutil

from .. import layout
from ..errors import InputError
from ..io import write_aside
from ..params import Params


def run(params: Params, setting: str) -> None:
    """Copy every file of runs/<setting>_seed<first>/, and its metrics, to the paths without a seed.

    Raises:
        InputError: a file is missing; nothing is copied.
    """
    first = layout.Run(setting, params.seeds[0])
    copies = {}
    for stage, files in layout.RUN_FILES.items():
        for path_of in files:
            source = path_of(first.name)
            if not source.is_file():
                raise InputError(f"{source}: not found; run `python -m fvlm {stage} {first.options}`")
            copies[source] = path_of(setting)
    for source, target in copies.items():
        with write_aside(target) as aside:
            shutil.copyfile(source, aside)
    print(f"first_seed: runs/{setting}/ is the run of seed {first.seed}", flush=True)
