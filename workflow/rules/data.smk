rule download:
    input:
        code=[
            "fvlm/stages/download.py",
            "fvlm/data/backgrounds.py",
            "fvlm/data/coco.py",
            "fvlm/data/coco2017.json",
            "fvlm/data/coco2017.py",
            "fvlm/data/coco2017_counts.csv",
            "fvlm/data/coco_categories.json",
            "fvlm/data/counts.py",
            "fvlm/data/emoji.py",
            "fvlm/data/emoji_categories.json",
            "fvlm/data/fetch.py",
            "fvlm/data/manifest.py",
            "fvlm/data/masks.py",
            "fvlm/data/ov_coco.json",
            "fvlm/data/progress.py",
            "fvlm/data/scenes.py",
            "fvlm/data/splits.py",
            "fvlm/data/sprites.py",
            "fvlm/data/unpack.py",
        ],
    output:
        MANIFEST,
    log:
        "logs/download.log",
    benchmark:
        "logs/benchmarks/download.tsv"
    localrule: True
    conda:
        "../envs/fvlm.yaml"
    params:
        sections=sections("data"),
    shell:
        "python -m fvlm download 2>&1 | tee {log}"


rule splits:
    input:
        MANIFEST,
        code=[
            "fvlm/stages/splits.py",
            "fvlm/data/coco.py",
            "fvlm/data/coco2017_counts.csv",
            "fvlm/data/coco_categories.json",
            "fvlm/data/counts.py",
            "fvlm/data/manifest.py",
            "fvlm/data/ov_coco.json",
            "fvlm/data/splits.py",
        ],
    output:
        "data/splits/train_{setting}.json",
    log:
        "logs/splits/{setting}.log",
    wildcard_constraints:
        setting="|".join(ALL_SETTINGS),  # also of those that only `setting_ablation` trains
    conda:
        "../envs/fvlm.yaml"
    params:
        sections=sections("splits"),
    shell:
        "python -m fvlm splits --setting {wildcards.setting} > {log} 2>&1"


rule val_splits:
    input:
        MANIFEST,
        code=[
            "fvlm/stages/val_splits.py",
            "fvlm/data/coco.py",
            "fvlm/data/coco2017_counts.csv",
            "fvlm/data/coco_categories.json",
            "fvlm/data/counts.py",
            "fvlm/data/manifest.py",
            "fvlm/data/ov_coco.json",
            "fvlm/data/splits.py",
        ],
    output:
        "data/splits/val_base.json",
        "data/splits/val_novel.json",
        "data/splits/val_generalized.json",
        "data/splits/val_all.json",
        report(
            "data/splits/counts.csv",
            caption="../report/counts.rst",
            category="Data",
        ),
    log:
        "logs/val_splits.log",
    conda:
        "../envs/fvlm.yaml"
    params:
        sections=sections(),
    shell:
        "python -m fvlm val_splits > {log} 2>&1"
