"""Put the graph of the rules, as Snakemake draws it, into README.md between the markers; `--check` only compares.

Run from the repository's folder: `python workflow/rulegraph.py [--check]` (`make rulegraph`).
"""

import re
import subprocess
import sys
from pathlib import Path

README = Path("README.md")
BEGIN, END = "<!-- rulegraph: `make rulegraph` writes this -->\n", "<!-- /rulegraph -->\n"


def rulegraph() -> str:
    """The graph as a mermaid block, without Snakemake's numbers, which change from run to run."""
    command = [sys.executable, "-m", "snakemake", "all", "--rulegraph", "mermaid-js", "--cores", "1"]
    drawn = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    rule_of = dict(re.findall(r"(id\d+)\[(\w+)\]", drawn))
    arrows = sorted((rule_of[a], rule_of[b]) for a, b in re.findall(r"(id\d+) --> (id\d+)", drawn))
    return "\n".join(["```mermaid", "flowchart LR", *(f"    {a} --> {b}" for a, b in arrows), "```", ""])


def main() -> int:
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        print(f"{README}: expected the lines {BEGIN.strip()} and {END.strip()}, in this order", file=sys.stderr)
        return 2
    current = before + BEGIN + rulegraph() + END + after
    if "--check" in sys.argv[1:]:
        if text != current:
            print(f"{README}: the rule graph is out of date; run `make rulegraph`", file=sys.stderr)
        return int(text != current)
    README.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
