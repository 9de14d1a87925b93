"""Stage `ablation_table`: table and plot of one ablation, from the scores of its variants."""

from .. import layout
from ..ablations import ABLATIONS, plan
from ..errors import InputError
from ..io import read_json, write_aside, write_json, write_text
from ..params import Params
from ..report.ablations import comparison, plot
from ..report.plots import to_png
from ..report.tables import pipes


def run(params: Params, name: str) -> None:
    """Write ablations/<name>/comparison.csv, .md, .png and .json; the last is what the report page shows.

    Raises:
        InputError: the scores of a variant are missing, or not those of that variant.
    """
    scores = {}
    for variant in ABLATIONS[name].variants:
        chosen = plan(params, name, variant)
        scores[variant] = read_json(chosen.scores, f"scores of variant {variant}", chosen.remedy)
        found = (scores[variant].get("ablation"), scores[variant].get("variant"))
        if found != (name, variant):
            raise InputError(f"{chosen.scores}: expected scores of {(name, variant)}, got {found}; {chosen.remedy}")
    table = comparison(name, scores)
    output = layout.ablation_comparison(name)
    write_text(output.with_suffix(".csv"), table.to_csv(index=False, lineterminator="\n"))
    markdown = [pipes(list(table.columns), table.astype(str).to_numpy().tolist()), *ABLATIONS[name].notes]
    write_text(output.with_suffix(".md"), "\n\n".join(markdown) + "\n")
    with write_aside(output.with_suffix(".png")) as aside:
        aside.write_bytes(to_png(plot(name, table)))
    write_json(output, scores)
    print(table.to_string(index=False))
