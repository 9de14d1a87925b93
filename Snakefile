# `snakemake all --cores 8` starts here; the workflow lives in workflow/.
include: "workflow/Snakefile"
